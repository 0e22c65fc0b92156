// A store that hangs in the system call, for LD_PRELOAD. PF_HANG says which call:
//   fsync:SUFFIX   of a file whose path ends in SUFFIX
//   io_submit:N    every one after the first N
// It never returns; the file named in PF_HANG_SAYS is made when that begins.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char* asked_for(const char* call) {
  const char* spec = getenv("PF_HANG");
  const size_t length = strlen(call);
  return spec != NULL && strncmp(spec, call, length) == 0 ? spec + length : NULL;
}

static void hang(void) {
  const char* says = getenv("PF_HANG_SAYS");
  if (says != NULL) close(open(says, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  for (;;) pause();
}

int fsync(int fd) {
  const char* suffix = asked_for("fsync:");
  if (suffix != NULL) {
    char name[64];
    char path[4096];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    const ssize_t length = readlink(name, path, sizeof path - 1);
    const size_t wanted = strlen(suffix);
    if (length >= (ssize_t)wanted && memcmp(path + length - wanted, suffix, wanted) == 0) hang();
  }
  int (*next)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
  return next(fd);
}

int io_submit(void* context, long count, void** requests) {
  static atomic_long calls;
  const char* spared = asked_for("io_submit:");
  if (spared != NULL && atomic_fetch_add(&calls, 1) >= atol(spared)) hang();
  int (*next)(void*, long, void**) = (int (*)(void*, long, void**))dlsym(RTLD_NEXT, "io_submit");
  return next(context, count, requests);
}
