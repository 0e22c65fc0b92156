/* A VMM in C: the header compiles as C99 (and, as the same file, as C++11), and the library is called. Exit 0: it refuses what it must. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "pageferry_hook.h"

static int pause_vcpus(void* opaque) {
  (void)opaque;
  return 0;
}

int main(void) {
  struct pageferry_hook_callbacks callbacks;
  struct pageferry_hook_config config;
  struct pageferry_memory_slot slot;
  pageferry_hook* hook = NULL;
  char error[256];
  int started;

  memset(&callbacks, 0, sizeof callbacks);
  memset(&config, 0, sizeof config);
  memset(&slot, 0, sizeof slot);
  callbacks.size_bytes = sizeof callbacks;
  callbacks.pause = pause_vcpus;
  slot.name = "ram";
  config.size_bytes = sizeof config;
  config.abi_version = PAGEFERRY_HOOK_ABI_VERSION;
  config.socket_path = "/tmp/never-made";
  config.vm_name = "c";
  config.machine = "c";
  config.slots = &slot;
  config.slot_count = 1;
  config.callbacks = &callbacks;
  config.dirty_source = PAGEFERRY_DIRTY_AUTOMATIC;
  config.kvm_vm_fd = -1;
  started = pageferry_hook_start(&config, &hook, error, sizeof error);
  printf("%d %s\n", started, error);
  return started == -EINVAL && hook == NULL && strstr(error, "callbacks.resume is NULL") != NULL
             ? 0
             : 1;
}
