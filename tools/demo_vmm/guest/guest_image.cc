// The image is taken in by the assembler: PAGEFERRY_GUEST_IMAGE is the file that guest_main.cc was linked to.
#include "tools/demo_vmm/guest/guest_image.h"

asm(".section .rodata\n"
    ".balign 16\n"
    "pageferry_guest_image_begin:\n"
    ".incbin \"" PAGEFERRY_GUEST_IMAGE
    "\"\n"
    "pageferry_guest_image_end:\n"
    ".globl pageferry_guest_image_begin, pageferry_guest_image_end\n"
    ".text\n");

extern "C" {
extern const std::byte pageferry_guest_image_begin[];
extern const std::byte pageferry_guest_image_end[];
}

namespace pageferry::demo {

std::span<const std::byte> guest_image() {
  return {pageferry_guest_image_begin, pageferry_guest_image_end};
}

}  // namespace pageferry::demo
