/* The hand-off of docs/ownership-protocol.md as a model for spin. Run it with docs/model/check.
 *
 * Two hosts with one VMM slot and one tool each, and a store of records. Host 0 runs the guest under epoch 0 and may
 * migrate it; either host may restore it, take it back, or lose tool, VMM or everything at any step. A tool that died is
 * started again and knows nothing but the records and its VMM; it decides by the table of transport/hand_off_rules.cc,
 * which DECIDE below repeats line by line. Change the model first, then the code.
 *
 * What of the world is in it:
 *   - QEMU as the source resumes by itself when the socket closes before SHUT(0); after SHUT(0) it ends in postmigrate
 *   - a link(2) that was under way when its tool or host died may land at any later time, or never
 *   - hosts are fenced only when really off; an off host may come back in another boot
 *   - a user may pause the guest
 * Each death (of a tool, a VMM, a host) and the pause costs one of FAULTS. What is not in it: a partition of the store (a
 * tool that cannot reach it simply does not move), disk locks, `cont` by strangers.
 *
 * Properties:
 *   S1  at most one VMM executes                                     EXECUTE
 *   S2  only the newest state is executed                            EXECUTE
 *   S3  memory is given up only when a VMM died that ran, or in the
 *       windows L1 and L2; and when nothing can move any more, the
 *       guest runs                                                   BOOT_IS_NEEDED, AtTheEnd
 *   L1: the source VMM died after the commit and before released.N took effect, the tool dead too: no release names the
 *   image. L2: tool and VMM died between running.N and `cont`: nobody knows that the guest did not run.
 *
 * The newest state is tracked by a ghost bit: a state (in an image or a VMM) is `fresh` until a VMM executes that does not
 * hold it. Executing what is not fresh is going back in time.
 *
 * Every transition is one d_step. Two reductions are made on purpose: a tool looks at its VMM and reads the first records
 * in one step (nothing of another host depends on that VMM, so the two orders cannot be told apart; in M9 and M10, where
 * that is not so, they are two steps), and it issues a link in the step that decides so (dying before the issue is the
 * same as dying after it with the link lost).
 *
 * Mutations: -DM1 .. -DM13 break one rule each (numbers and stories: docs/ownership-protocol.md). A checker that misses one
 * of them is blind. -DNO_FENCING shows that AtTheEnd can fail.
 */

#ifndef FAULTS
#define FAULTS 1
#endif
#ifndef EPOCHS
#define EPOCHS 4        /* 0 .. EPOCHS-1; a run that needs more ends there */
#endif
#ifndef MIGRATIONS
#define MIGRATIONS 2
#endif

#define HOSTS 2
#ifdef M9
#define TOOLS 3         /* a second tool on host 1, without the local lock */
#define HOST_OF(t) (t > 0)
#else
#define TOOLS 2
#define HOST_OF(t) (t)
#endif

/* VMM states */
#define NONE 0
#define RUN 1
#define FIN 2           /* finish-migrate */
#define PM 3            /* postmigrate */
#define PAUSED 4

/* record kinds */
#define OWNER 1
#define RUNNING 2       /* content: 1 runs, 2 void */
#define RELEASED 3      /* content: 1 no image, 2 + k the image of epoch k; memory: the stopped VMM that holds the state */
#define FENCED 4

/* where a tool is */
#define LOOK 0          /* at the start, and after every deed; also a dead tool, which is started when its host is up */
#define READ 1
#define IDLE 2          /* the guest runs here */
#define MIGRATING 3
#define COMMITTED 4
#define WAIT_FIN 5
#define WAIT_OTHER 6
#define WAIT_MEMORY 7
#define LINKING 8
#define CLAIMED 9
#define CONT 10
#define SENT 11
#define PROVED 12
#define STUCK 13
#define LOOKED 14

/* a VMM of one boot of one host: 1 + host + 2 * boot + 4 * incarnation */
#define VMM(h) (1 + (h) + 2 * boot[h] + 4 * incarnation[h])
#define HOST(code) (((code) - 1) & 1)
#ifdef M6
#define IS_ME(code, h) (HOST(code) == h)
#define IS_VMM(code, h) (HOST(code) == h && (((code) - 1) >> 2) == incarnation[h])
#else
#define IS_ME(code, h) (HOST(code) == h && ((((code) - 1) >> 1) & 1) == boot[h])
#define IS_VMM(code, h) ((code) == VMM(h))
#endif

/* the store: one name per epoch and kind, taken once */
byte owner[EPOCHS];     /* a VMM's code */
byte running[EPOCHS];
byte released[EPOCHS];
byte memory[EPOCHS];    /* of released */
bit fenced[EPOCHS];
#define CLOSED(e) (released[e] || fenced[e])

/* images: one per epoch that was migrated from */
bit fresh_image[EPOCHS];
#ifdef M11
bit committed[EPOCHS];
#endif

/* links that were under way when their tool died */
#define LATE (FAULTS + 1)
byte late_kind[LATE];
byte late_epoch[LATE];
byte late_content[LATE];
byte late_memory[LATE];

/* hosts and VMMs */
bit up[HOSTS];
bit boot[HOSTS];
bit returns[HOSTS];     /* off, and will be switched on again */
byte vmm[HOSTS];
byte incarnation[HOSTS];
bit fresh_vmm[HOSTS];
bit unbooted[HOSTS];    /* spawned for a boot, holds no state */
bit socket_open[HOSTS];
bit shut0[HOSTS];       /* SHUT(0) is on its way */
#ifdef M10
bit cont_pending[HOSTS];
#endif

/* tools: where they are and what they know */
byte at[TOOLS];
byte look[TOOLS];
byte top[TOOLS];
bit top_closed[TOOLS];
byte top_released[TOOLS];
byte top_memory[TOOLS];
byte wanted_memory[TOOLS];
byte my_image[TOOLS];   /* 2 + the epoch whose image this life committed, its event stream unbroken */
byte loaded[TOOLS];     /* 2 + the epoch whose image this life loaded into its VMM, which has not run since */
bit unsent[TOOLS];      /* this life wrote running.top and has not sent `cont` */
byte blind[TOOLS];      /* ghost: the releases that were not there when this life decided to boot */
#if defined(M2) || defined(M3)
bit restarted[TOOLS];
#endif
byte link_kind[TOOLS];
byte link_epoch[TOOLS];
byte link_content[TOOLS];
byte link_memory[TOOLS];

bit executed[EPOCHS];   /* ghost: some VMM ran under this epoch */
byte faults_left = FAULTS;
byte migrations_left = MIGRATIONS;
bit out_of_epochs;      /* the run needs more epochs than the model has */

inline EXECUTE(h, e) {
  assert(vmm[1 - h] != RUN);                               /* S1 */
  assert(fresh_vmm[h] || unbooted[h]);                     /* S2 */
  for (x : 0 .. EPOCHS - 1) { fresh_image[x] = 0 }
  x = 0;
  fresh_vmm[1 - h] = 0;
  fresh_vmm[h] = 1;
  unbooted[h] = 0;
  vmm[h] = RUN;
  executed[e] = 1
}

inline END_VMM(h) {
  vmm[h] = NONE;
  fresh_vmm[h] = 0;
  unbooted[h] = 0;
  socket_open[h] = 0;
  shut0[h] = 0
}

inline SPAWN(h) {
  vmm[h] = PAUSED;
  incarnation[h]++
}

inline APPLY(k, e, c, m) {
  won = 0;
  if
  :: k == OWNER && owner[e] == 0 -> owner[e] = m; won = 1
  :: k == RUNNING && running[e] == 0 -> running[e] = c; won = 1
  :: k == RELEASED && released[e] == 0 -> released[e] = c; memory[e] = m; won = 1
  :: k == FENCED && fenced[e] == 0 -> fenced[e] = 1; won = 1
  :: else
  fi
}

inline ISSUE(k, e, c, m) {
  link_kind[t] = k; link_epoch[t] = e; link_content[t] = c; link_memory[t] = m;
  at[t] = LINKING
}

inline FORGET_LINK(t) {
  link_kind[t] = 0; link_epoch[t] = 0; link_content[t] = 0; link_memory[t] = 0
}

inline CLAIM_NEXT() {
  if
  :: top[t] + 1 < EPOCHS -> ISSUE(OWNER, top[t] + 1, 0, VMM(h))
  :: else -> out_of_epochs = 1; at[t] = STUCK
  fi
}

/* Rule 4 for epoch `n`: sets image (0: none, else 2 + k as in `released`) and mem. The top epoch's released was read
 * before its running; those below are closed, and read later still. */
inline WALK(n, image, mem) {
  image = 0; mem = 0;
  x = n;
  do
  :: x == 0 -> break
  :: else ->
    x--;
    if
    :: x == top[t] -> y = top_released[t]; z = top_memory[t]; w = top_running
    :: else -> y = released[x]; z = memory[x]; w = running[x]
    fi;
#ifdef M13
    if
    :: w == 1 -> break
    :: else
    fi;
#endif
    if
    :: y > 1 || z -> image = (y > 1 -> y : 0); mem = z; break
    :: w == 1 && y <= 1 && !z -> break
    :: else
    fi
  od;
  x = 0; y = 0; z = 0; w = 0
}

inline FIND_TOP() {
  top[t] = EPOCHS - 1;
  do
  :: owner[top[t]] == 0 -> top[t]--
  :: else -> break
  od
}

#define GONE(code) ((code) == 0 || !up[HOST(code)] || (code) != VMM(HOST(code)) || vmm[HOST(code)] != PM)

/* Not a rule, but what must be true when epoch top + 1 was claimed to give up the guest's memory: no release that was there
 * when the records were read (blind: a bit for each that was not) names a state that is still good. y: window L2,
 * an epoch that had its running, did not execute, and had no such release or one of a memory that is gone since. */
#define NAMED_AND_SEEN(z, what) (what && !((blind[t] >> z) & 1))
inline BOOT_IS_NEEDED() {
  y = 0;
  for (x : 0 .. EPOCHS - 1) {
    if
    :: running[x] == 1 && !executed[x] && ((blind[t] >> x & 1) || (released[x] <= 1 && GONE(memory[x]))) -> y = 1
    :: else
    fi
  }
  for (z : 0 .. EPOCHS - 1) {
    for (x : 0 .. EPOCHS - 1) {
      assert(y || !fresh_image[x] || !NAMED_AND_SEEN(z, released[z] == 2 + x))                          /* S3 */
    }
    for (x : 0 .. HOSTS - 1) {
      assert(y || !fresh_vmm[x] || vmm[x] != PM || !NAMED_AND_SEEN(z, memory[z] == VMM(x)))             /* S3 */
    }
  }
  x = 0; y = 0; z = 0
}

inline SET_BLIND() {
  blind[t] = 0;
  for (x : 0 .. EPOCHS - 1) {
    if
    :: (x == top[t] -> top_released[t] : released[x]) == 0 -> blind[t] = blind[t] | (1 << x)
    :: else
    fi
  }
  x = 0
}

/* the state that rule 4 gives to this epoch: it has not run */
inline RELEASE_THE_SAME() {
  ISSUE(RELEASED, top[t], cur_image, cur_memory);
  if
  :: cur_image == 0 -> link_content[t] = 1
  :: else
  fi
}

inline RELEASE_MINE(held_by) {
  ISSUE(RELEASED, top[t], 1, held_by);
  if
  :: my_image[t] == 2 + top[t] -> link_content[t] = my_image[t]
  :: else
  fi
}

#define OVER(code) (!up[HOST(code)] || ((((code) - 1) >> 1) & 1) != boot[HOST(code)])
#define NEXT_TAKEN (top[t] + 1 < EPOCHS && owner[top[t] + 1])

/* The table. `see` is what is seen of the VMM to decide about: the one that owner.T names comes first, and when that one
 * was on this host and is gone, NONE is decided whatever else is in the slot. */
inline DECIDE() {
  mine = IS_ME(owner[top[t]], h);
  ours = IS_VMM(owner[top[t]], h);
  see = (!top_closed[t] && mine && !ours && (look[t] == PM || look[t] == PAUSED) -> NONE : look[t]);
  WALK(top[t], cur_image, cur_memory);
  WALK(top[t] + 1, next_image, next_memory);
  if
  :: !top_closed[t] && HOST(owner[top[t]]) == h && !mine ->                 /* a later boot is a proof */
    ISSUE(FENCED, top[t], 0, 0)
  :: else ->
    if
    :: see == RUN -> at[t] = IDLE
    :: see == FIN -> at[t] = WAIT_FIN

    :: see == PM && top_closed[t] && next_memory == VMM(h) -> CLAIM_NEXT()
    :: see == PM && top_closed[t] && next_memory != VMM(h) -> END_VMM(h); at[t] = LOOK
    :: see == PM && !top_closed[t] && !ours && top_running == 1 -> END_VMM(h); at[t] = LOOK
    :: see == PM && !top_closed[t] && !ours && top_running != 1 -> at[t] = WAIT_OTHER
    :: see == PM && !top_closed[t] && ours && top_running == 0 ->
      RELEASE_THE_SAME()
    :: see == PM && !top_closed[t] && ours && top_running != 0 ->
      RELEASE_MINE(VMM(h));
#ifdef M2
      if
      :: restarted[t] && top[t] == 0 -> FORGET_LINK(t); at[t] = CONT
      :: else
      fi
#endif
#ifdef M3
      if
      :: restarted[t] && top[t] > 0 -> FORGET_LINK(t); at[t] = CONT
      :: else
      fi
#endif

    :: see == PAUSED && top_closed[t] && loaded[t] && loaded[t] == next_image -> CLAIM_NEXT()
    :: see == PAUSED && top_closed[t] && !(loaded[t] && loaded[t] == next_image) ->
      END_VMM(h); loaded[t] = 0; at[t] = LOOK
    :: see == PAUSED && !top_closed[t] && (!ours || top_running == 2) ->
      END_VMM(h); loaded[t] = 0; at[t] = LOOK
    :: see == PAUSED && !top_closed[t] && ours && top_running == 0 -> at[t] = CLAIMED
    :: see == PAUSED && !top_closed[t] && ours && top_running == 1 ->
      at[t] = CONT;
#ifdef M12
      if
      :: cur_image -> ISSUE(RELEASED, top[t], cur_image, cur_memory)
      :: else
      fi
#endif

    :: see == NONE && top_closed[t] && next_image ->
      SPAWN(h);
      fresh_vmm[h] = fresh_image[next_image - 2];
      loaded[t] = next_image;
      CLAIM_NEXT()
    :: see == NONE && top_closed[t] && !next_image && GONE(next_memory) ->
      SPAWN(h);
      unbooted[h] = 1;
      SET_BLIND();
      CLAIM_NEXT()
    :: see == NONE && top_closed[t] && !next_image && !GONE(next_memory) ->
      at[t] = WAIT_MEMORY; wanted_memory[t] = next_memory    /* a person does not give up what a stopped VMM still holds */
    :: see == NONE && !top_closed[t] && !mine -> at[t] = WAIT_OTHER
#ifdef M5
    :: see == NONE && !top_closed[t] && mine && top_running != 2 && cur_image && look[t] == NONE && incarnation[h] < 3 ->
      SPAWN(h);
      fresh_vmm[h] = fresh_image[cur_image - 2];
      loaded[t] = cur_image;
      owner[top[t]] = VMM(h);
      at[t] = (top_running == 1 -> CONT : CLAIMED)
#endif
    :: see == NONE && !top_closed[t] && mine && top_running == 0 ->
      ISSUE(RUNNING, top[t], 2, 0)                           /* void, then decide again */
    :: see == NONE && !top_closed[t] && mine && top_running == 1 && unsent[t] ->
      RELEASE_THE_SAME()
    :: see == NONE && !top_closed[t] && mine && top_running == 1 && !unsent[t] ->
      RELEASE_MINE(0);
#ifdef M11
      if
      :: committed[top[t]] -> link_content[t] = 2 + top[t]
      :: else
      fi
#endif
    :: see == NONE && !top_closed[t] && mine && top_running == 2 ->
      RELEASE_THE_SAME()
    fi
  fi;
  mine = 0; ours = 0; see = 0; cur_image = 0; cur_memory = 0; next_image = 0; next_memory = 0; top_running = 0;
  top_closed[t] = 0; top_released[t] = 0; top_memory[t] = 0;
  look[t] = (at[t] == WAIT_OTHER -> look[t] : 0)
}

/* The first of two reads: what closes the top epoch, before its running (rule 4). */
inline READ_FIRST() {
  FIND_TOP();
#ifndef M8
  top_closed[t] = CLOSED(top[t]); top_released[t] = released[top[t]]; top_memory[t] = memory[top[t]];
#else
  top_closed[t] = running[top[t]];
#endif
  at[t] = READ
}

inline READ_SECOND() {
#ifndef M8
  top_running = running[top[t]];
#else
  top_running = top_closed[t];
  top_closed[t] = CLOSED(top[t]); top_released[t] = released[top[t]]; top_memory[t] = memory[top[t]];
#endif
  DECIDE()
}

/* The reply of the store. `won` says whose record is there. */
inline LINKED() {
  kind = link_kind[t];
  content = link_content[t];
  APPLY(kind, link_epoch[t], content, link_memory[t]);
#ifdef M6
  won = won || (kind == OWNER && IS_ME(owner[link_epoch[t]], h));
#endif
  FORGET_LINK(t);
  at[t] = LOOK;
  if
  :: kind == OWNER && won ->
    if
    :: unbooted[h] -> BOOT_IS_NEEDED()
    :: else
    fi;
    top[t]++;
    at[t] = CLAIMED
  :: kind == RUNNING && content == 1 && won -> unsent[t] = 1; at[t] = CONT
  :: kind == RELEASED ->
    unsent[t] = 0;
    my_image[t] = 0;
    at[t] = (won && content > 1 && vmm[h] == PM -> SENT : LOOK);
#ifdef M1
    if
    :: vmm[h] == FIN -> at[t] = COMMITTED
    :: else
    fi
#endif
#ifdef M4
    if
    :: vmm[h] == PAUSED -> END_VMM(h); loaded[t] = 0
    :: else
    fi
#endif
  :: else
  fi;
  blind[t] = 0; won = 0; kind = 0; content = 0
}

proctype Tool(byte t; byte h) {
  byte x, y, z, w, see, top_running, cur_image, cur_memory, next_image, next_memory, kind, content;
  bit mine, ours, won;                                     /* all zero between steps */
  do
#if defined(M9) || defined(M10)
  :: d_step { at[t] == LOOK && up[h] -> look[t] = vmm[h]; at[t] = LOOKED }
  :: d_step { at[t] == LOOKED -> READ_FIRST() }
#else
  :: d_step { at[t] == LOOK && up[h] -> look[t] = vmm[h]; READ_FIRST() }
#endif
  :: d_step { at[t] == READ -> READ_SECOND() }
  :: d_step { at[t] == LINKING -> LINKED() }

  :: d_step { at[t] == IDLE && vmm[h] != RUN -> at[t] = LOOK }
  :: d_step { at[t] == IDLE && vmm[h] == RUN && migrations_left && owner[top[t]] == VMM(h) && running[top[t]] == 1 &&
              !CLOSED(top[t]) && !NEXT_TAKEN && top[t] + 1 < EPOCHS ->
      migrations_left--; vmm[h] = FIN; socket_open[h] = 1; at[t] = MIGRATING }
  :: d_step { at[t] == MIGRATING && vmm[h] == FIN ->
      fresh_image[top[t]] = fresh_vmm[h]; my_image[t] = 2 + top[t]; at[t] = COMMITTED;
#ifdef M11
      committed[top[t]] = 1;
#endif
#ifdef M1
      ISSUE(RELEASED, top[t], my_image[t], VMM(h))
#endif
    }
  :: d_step { (at[t] == MIGRATING || at[t] == COMMITTED) && vmm[h] != FIN -> at[t] = LOOK }
  /* to abort before SHUT(0) it is enough to close the socket */
  :: d_step { at[t] == COMMITTED && vmm[h] == FIN -> socket_open[h] = 0; my_image[t] = 0; at[t] = WAIT_FIN }
  :: d_step { at[t] == COMMITTED && vmm[h] == FIN -> shut0[h] = 1; at[t] = WAIT_FIN }
  :: d_step { at[t] == WAIT_FIN && vmm[h] != FIN -> at[t] = LOOK }

  /* `send` ends its source, `migrate` keeps it until the destination runs */
  :: d_step { at[t] == SENT && vmm[h] == PM -> END_VMM(h); at[t] = LOOK }
  :: d_step { at[t] == SENT -> at[t] = LOOK }

  :: d_step { at[t] == CLAIMED -> ISSUE(RUNNING, top[t], 1, 0) }
  /* a change of mind: rule 6 */
#ifdef M4
  :: d_step { at[t] == CLAIMED && vmm[h] == PAUSED && !unbooted[h] && loaded[t] ->
      ISSUE(RELEASED, top[t], loaded[t], 0) }
#else
  :: d_step { at[t] == CLAIMED && vmm[h] == PAUSED && !unbooted[h] -> END_VMM(h); loaded[t] = 0; at[t] = LOOK }
#endif
  :: d_step { at[t] == CONT && (vmm[h] == PM || vmm[h] == PAUSED) ->
      EXECUTE(h, top[t]); unsent[t] = 0; loaded[t] = 0; my_image[t] = 0; at[t] = LOOK }
  :: d_step { at[t] == CONT && vmm[h] != PM && vmm[h] != PAUSED -> at[t] = LOOK }

  :: d_step { at[t] == WAIT_OTHER &&
              (CLOSED(top[t]) || NEXT_TAKEN || vmm[h] != look[t] || (look[t] == PM && running[top[t]] == 1)) ->
      look[t] = 0; at[t] = LOOK }
  /* proved off, after owner.top was read: the host is off now, or in another boot (rule 9) */
#ifdef M7
  :: d_step { at[t] == WAIT_OTHER && OVER(owner[top[t]]) -> look[t] = 0; at[t] = PROVED }
  :: d_step { at[t] == PROVED ->
      FIND_TOP();
      if
      :: HOST(owner[top[t]]) != h && !CLOSED(top[t]) -> ISSUE(FENCED, top[t], 0, 0)
      :: else -> at[t] = LOOK
      fi }
#elif !defined(NO_FENCING)
  :: d_step { at[t] == WAIT_OTHER && OVER(owner[top[t]]) -> look[t] = 0; ISSUE(FENCED, top[t], 0, 0) }
#endif
  :: d_step { at[t] == WAIT_MEMORY && (GONE(wanted_memory[t]) || NEXT_TAKEN) -> wanted_memory[t] = 0; at[t] = LOOK }
  od
}

inline KILL(t) {
#ifdef M10
  cont_pending[HOST_OF(t)] = (at[t] == CONT);
#endif
#if defined(M2) || defined(M3)
  restarted[t] = 1;
#endif
  socket_open[HOST_OF(t)] = 0;
  at[t] = LOOK; look[t] = 0; top[t] = 0; top_closed[t] = 0; top_released[t] = 0; top_memory[t] = 0;
  wanted_memory[t] = 0; my_image[t] = 0; loaded[t] = 0; unsent[t] = 0; blind[t] = 0;
  FORGET_LINK(t)
}

inline LINK_BECOMES_LATE(t) {
  i = 0;
  do
  :: late_kind[i] -> i++
  :: else -> break
  od;
  late_kind[i] = link_kind[t]; late_epoch[i] = link_epoch[t];
  late_content[i] = link_content[t]; late_memory[i] = link_memory[t];
  i = 0
}

inline HOST_OFF(h, comes_back) {
  faults_left--;
  up[h] = 0;
  returns[h] = comes_back;
  END_VMM(h);
  KILL(h);
#ifdef M9
  if
  :: h == 1 -> KILL(2)
  :: else
  fi
#endif
}

#define QEMU_MOVES(h) \
  :: d_step { vmm[h] == FIN && shut0[h] -> vmm[h] = PM; shut0[h] = 0; socket_open[h] = 0 } \
  :: d_step { vmm[h] == FIN && !shut0[h] && !socket_open[h] -> EXECUTE(h, 0) }

#define LATE_LINK(l) \
  :: d_step { late_kind[l] -> APPLY(late_kind[l], late_epoch[l], late_content[l], late_memory[l]); won = 0; \
      late_kind[l] = 0; late_epoch[l] = 0; late_content[l] = 0; late_memory[l] = 0 }

#define TOOL_FAULTS(t) \
  :: d_step { faults_left && up[HOST_OF(t)] && at[t] != LOOK -> faults_left--; KILL(t) } \
  :: d_step { faults_left && link_kind[t] -> faults_left--; LINK_BECOMES_LATE(t); KILL(t) }

#define HOST_FAULTS(h) \
  :: d_step { faults_left && vmm[h] != NONE -> faults_left--; END_VMM(h) } \
  :: d_step { faults_left && vmm[h] == RUN -> faults_left--; vmm[h] = PAUSED } \
  :: d_step { faults_left && up[h] -> HOST_OFF(h, 0) } \
  :: d_step { faults_left && up[h] && boot[h] == 0 -> HOST_OFF(h, 1) } \
  :: d_step { faults_left && up[h] && link_kind[h] -> LINK_BECOMES_LATE(h); HOST_OFF(h, 0) } \
  :: d_step { faults_left && up[h] && boot[h] == 0 && link_kind[h] -> LINK_BECOMES_LATE(h); HOST_OFF(h, 1) } \
  :: d_step { !up[h] && returns[h] -> up[h] = 1; returns[h] = 0; boot[h] = 1; incarnation[h] = 0 }

/* QEMU's own moves, the store's late ones, and the faults. */
proctype World() {
  byte i, x;
  bit won;
  do
  QEMU_MOVES(0)
  QEMU_MOVES(1)
#ifdef M10
  :: d_step { cont_pending[0] && (vmm[0] == PM || vmm[0] == PAUSED) -> cont_pending[0] = 0; EXECUTE(0, 0) }
  :: d_step { cont_pending[1] && (vmm[1] == PM || vmm[1] == PAUSED) -> cont_pending[1] = 0; EXECUTE(1, 0) }
#endif
  LATE_LINK(0)
#if FAULTS > 1
  LATE_LINK(1)
#endif
#if FAULTS > 2
  LATE_LINK(2)
#endif
  TOOL_FAULTS(0)
  TOOL_FAULTS(1)
#ifdef M9
  TOOL_FAULTS(2)
#endif
  HOST_FAULTS(0)
  HOST_FAULTS(1)
  :: d_step { faults_left -> faults_left = 0 }
  od
}

/* S3, second half: when nothing can move any more, the guest runs. */
proctype AtTheEnd() {
  timeout -> assert(out_of_epochs || vmm[0] == RUN || vmm[1] == RUN || (!up[0] && !up[1]))
}

init {
  atomic {
    up[0] = 1; up[1] = 1;
    vmm[0] = RUN; fresh_vmm[0] = 1;
    owner[0] = VMM(0); running[0] = 1; executed[0] = 1;
    run Tool(0, 0);
    run Tool(1, 1);
#ifdef M9
    run Tool(2, 1);
#endif
    run World();
    run AtTheEnd()
  }
}
