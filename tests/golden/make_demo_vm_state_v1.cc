// Writes tests/golden/demo_vm_state_v1.bin to stdout. Run once for each version of the format.
#include <cstdio>

#include "golden/demo_vm_state_v1.h"

int main() {
  const auto bytes =
      pageferry::demo::encode_vm_state(pageferry::testing_support::demo_vm_state_v1());
  return std::fwrite(bytes.data(), 1, bytes.size(), stdout) == bytes.size() ? 0 : 1;
}
