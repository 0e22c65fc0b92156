/* pageferry_hook.h: how a VMM lets pageferry move its guest. A C interface: no exception and no C++ type crosses it, so it can be used
 * from C, C++ and Rust. docs/vmm-hook.md is the tutorial, docs/hook-protocol.md says what goes over the socket.
 *
 *   VMM process                                                        pager process (`pageferry`)
 *   +-----------------------------+   unix socket, 0600, same user or root   +---------------------------+
 *   | vCPUs, devices   libpageferry-hook <----------------------------------> HookClient                |
 *   | guest memory     (one thread of its own)  memory fds, userfaultfd,     | page file, records        |
 *   +-----------------------------+             one shared segment           +---------------------------+
 *
 * A VMM describes its memory and gives callbacks; the hook does the rest: it tracks dirty pages, pauses and resumes through the
 * callbacks, hands device state over, and holds the userfaultfd of a guest that is being restored, so that a pager which dies leaves
 * the guest waiting and never reading zeros.
 *
 * Who may run the guest. After pageferry_hook_start() the VMM starts its guest by itself only if it was not started as incoming. From
 * then on the hook decides: it calls `pause`, and `resume` only when the guest may run here: the move failed before it was committed
 * (also when the pager just died), or the pager of an epoch's owner says so. Between a commit and that word the VMM must not run the
 * guest for any reason.
 *
 * Threads: the callbacks are called from the hook's own thread, one at a time, and may block; mark_dirty, discard and the getters may be
 * called from any thread, also from a callback. start and stop: any thread, not from a callback.
 *
 * Errors: functions return 0, or a negative errno value; where they take `error`, it receives one line that says what is wrong.
 *
 * Versions: structures begin with their size. A member that a caller does not know of is taken as 0, which always means the behaviour
 * without it. PAGEFERRY_HOOK_ABI_VERSION changes only when that is not enough; the library's file name carries it.
 */
#ifndef PAGEFERRY_HOOK_H
#define PAGEFERRY_HOOK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PAGEFERRY_HOOK_ABI_VERSION 1u

#if defined(__GNUC__)
#define PAGEFERRY_HOOK_API __attribute__((visibility("default")))
#else
#define PAGEFERRY_HOOK_API
#endif

typedef struct pageferry_hook pageferry_hook;
typedef struct pageferry_state_writer pageferry_state_writer;
typedef struct pageferry_state_reader pageferry_state_reader;

/* One piece of guest memory. Order, names and sizes must be the same in the VMM that takes the guest. */
struct pageferry_memory_slot {
  /* 1 to 255 bytes, unique; copied */
  const char* name;
  /* gpa, a multiple of 4096; slots do not overlap */
  uint64_t guest_address;
  /* a multiple of backing_page_bytes, > 0 */
  uint64_t size_bytes;
  /* aligned to backing_page_bytes; stays mapped until pageferry_hook_stop() */
  void* host_address;
  /* what is mapped there MAP_SHARED (memfd, hugetlbfs or tmpfs file), or -1: anonymous, private memory. Stays the caller's; the hook
   * duplicates it */
  int32_t memory_fd;
  /* number of KVM's memory slot, for the dirty sources of KVM (which take it as set without flags); else -1 */
  int32_t kvm_slot;
  /* where the slot begins in memory_fd */
  uint64_t memory_fd_offset;
  /* 4096, or the page size of hugetlb memory */
  uint64_t backing_page_bytes;
};

/* How written pages are found. Only the VMM's process can do it, so the hook does. docs/dirty-tracking.md compares them, and says what a
 * VMM owes: drain before `pause` returns, mark_dirty, discard. */
enum pageferry_dirty_source {
  PAGEFERRY_DIRTY_AUTOMATIC =
      0, /* the VMM's own where fetch_dirty is given, else write protection as the kernel has it */
  PAGEFERRY_DIRTY_VMM = 1,      /* fetch_dirty */
  PAGEFERRY_DIRTY_KVM_LOG = 2,  /* kvm_vm_fd; the VMM reports the writes of its devices */
  PAGEFERRY_DIRTY_WP_ASYNC = 3, /* userfaultfd WP_ASYNC + PAGEMAP_SCAN (Linux 6.7) */
  PAGEFERRY_DIRTY_WP_SYNC = 4 /* userfaultfd write protection (Linux 5.7, memfd and hugetlb 5.19) */
};

/* The VMM's side. `opaque` is the configuration's. Those that return int: 0, or a negative errno value. */
struct pageferry_hook_callbacks {
  size_t size_bytes; /* sizeof(struct pageferry_hook_callbacks) */

  /* Required. Returns when no vCPU runs and no device or helper writes into guest memory any more (D1 in docs/dirty-tracking.md). On an
   * error the guest runs as before. */
  int (*pause)(void* opaque);
  /* Required. The vCPUs run. For an incoming guest also the first time, after load_state. An error is reported and the guest stays
   * paused; it will be asked again. */
  int (*resume)(void* opaque);

  /* Required. Everything that the guest is besides memory. The guest is paused. */
  int (*save_state)(void* opaque, pageferry_state_writer* writer);
  /* Required for incoming VMMs. What save_state wrote; nothing else may have been changed in the VMM when it fails. Must not touch guest
   * memory more than it has to: each touch waits for its page. */
  int (*load_state)(void* opaque, pageferry_state_reader* reader);

  /* Optional: the VMM's own dirty bitmap. set_dirty_log switches it (1 on, 0 off). fetch_dirty sets in `bitmap` (bit p % 64 of word
   * p / 64 for page p of the slot, 4096 bytes a page, (pages + 63) / 64 words, all 0 when called) what was written since it was called last
   * or the log was switched on, and forgets it. */
  int (*set_dirty_log)(void* opaque, int enabled);
  int (*fetch_dirty)(void* opaque, size_t slot, uint64_t* bitmap, size_t words);

  /* Optional. The guest runs elsewhere now (or its image was released): this VMM is not needed any more and should end. Without it the
   * pager ends the process. */
  void (*moved_away)(void* opaque);
  /* Optional. Every page of a restored guest is here; the userfaultfd is closed. */
  void (*resident)(void* opaque);
};

struct pageferry_hook_config {
  size_t size_bytes;    /* sizeof(struct pageferry_hook_config) */
  uint32_t abi_version; /* PAGEFERRY_HOOK_ABI_VERSION */

  /* 1: this VMM was started to take a guest. Its memory is mapped and untouched, its vCPUs do not run; the hook makes the memory wait for
   * its pages before start returns. 0: its guest runs, or will be started by the VMM. */
  uint32_t incoming;

  const char*
      socket_path; /* made with mode 0600; one that nobody listens on is replaced. At most 107 bytes */
  const char* vm_name; /* 1 to 255 bytes: the VM's name on the store */
  const char*
      machine; /* the VMM's kind, version and device model in words of its own; a guest is only given to a VMM whose text is
                              equal. 1 to 4096 bytes */

  const struct pageferry_memory_slot* slots;
  size_t slot_count; /* 1 to 1024 */
  const struct pageferry_hook_callbacks* callbacks;
  void* opaque;

  enum pageferry_dirty_source dirty_source;
  int32_t kvm_vm_fd; /* for PAGEFERRY_DIRTY_KVM_LOG; else -1 */

  /* Optional. The command (argv, ends with NULL) that starts a VMM of the same machine as incoming; the word {socket} in it is replaced by
   * the path it shall listen on. Kept in the manifest for the destination. */
  const char* const* incoming_command;
  /* Optional. The command (argv, ends with NULL) that starts a new pager while pages are missing and the pager is gone ({socket} as
   * above). Run at most once a second, and no more than 60 times in a row without a page brought. */
  const char* const* pager_command;
};

/* Checks everything, opens the socket, starts the hook's thread. Config, slots and callbacks are copied.
 * Errors: -EINVAL (the line names member, value and limit), -EADDRINUSE (somebody listens on the socket), -EOPNOTSUPP (this kernel or
 * memory cannot: the line says what), -EPERM (userfaultfd is not permitted), others of the system. */
PAGEFERRY_HOOK_API int pageferry_hook_start(const struct pageferry_hook_config* config,
                                            pageferry_hook** hook, char* error, size_t error_bytes);

/* Ends the thread and closes the socket; a move that was not committed is given up (the guest is resumed). Then the memory may be unmapped.
 * -EBUSY, and nothing is changed: pages are still missing; the guest would read zeros. Such a VMM may only end as a process. */
PAGEFERRY_HOOK_API int pageferry_hook_stop(pageferry_hook* hook);

/* Pages that were written in a way that the dirty source does not see (D2), after the write. `size_bytes` > 0; a range that is not inside
 * the slots is -EINVAL, and nothing is marked. Never blocks. */
PAGEFERRY_HOOK_API int pageferry_hook_mark_dirty(pageferry_hook* hook, uint64_t guest_address,
                                                 uint64_t size_bytes);

/* Pages that were given back (D3: a hole was made, a balloon inflated), after that, and before the guest may use them again: nobody
 * writes to them meanwhile. They read as zeros. Whole backing pages. As mark_dirty; while pages are missing, zeros are placed there for
 * good (shared memory takes real pages for that, which stay until the next hole), and none of the range is fetched any more. -ENOMEM: there
 * was no page for that. */
PAGEFERRY_HOOK_API int pageferry_hook_discard(pageferry_hook* hook, uint64_t guest_address,
                                              uint64_t size_bytes);

enum pageferry_hook_state {
  PAGEFERRY_HOOK_RUNNING = 0,   /* the guest is the VMM's own; nobody moves it */
  PAGEFERRY_HOOK_MOVING = 1,    /* a pager is connected and the guest runs */
  PAGEFERRY_HOOK_PAUSED = 2,    /* by the hook; a lost pager resumes it */
  PAGEFERRY_HOOK_COMMITTED = 3, /* by the hook; only an owner's pager resumes it */
  PAGEFERRY_HOOK_INCOMING = 4,  /* waits for a guest */
  PAGEFERRY_HOOK_RESTORING = 5, /* runs, pages are missing */
  PAGEFERRY_HOOK_MOVED_AWAY = 6 /* runs elsewhere */
};
PAGEFERRY_HOOK_API enum pageferry_hook_state pageferry_hook_get_state(const pageferry_hook* hook);

/* In save_state: appends. In load_state: takes the next bytes; -ENODATA when there are fewer, and then takes none. */
PAGEFERRY_HOOK_API int pageferry_state_write(pageferry_state_writer* writer, const void* bytes,
                                             size_t size_bytes);
PAGEFERRY_HOOK_API int pageferry_state_read(pageferry_state_reader* reader, void* bytes,
                                            size_t size_bytes);
PAGEFERRY_HOOK_API size_t pageferry_state_remaining(const pageferry_state_reader* reader);

#ifdef __cplusplus
}
#endif
#endif
