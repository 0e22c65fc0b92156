// Writes what the stream and return path fuzzers begin with: a good stream and a good conversation, each behind the byte that says
// where they are cut.
//
//   make_stream_seeds STREAM_CORPUS RETURN_PATH_CORPUS
#include <cstdio>
#include <fstream>
#include <string>

#include "fakes/source_stream.h"
#include "vmstate/qemu_return_path.h"

namespace {

using namespace pageferry;

bool write(const std::string& path, const ByteBuffer& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.put('\x10');
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  return file.good();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  fakes::SourceStream stream;
  stream.setup({{"pc.ram", 4 * kPageSizeBytes}, {"r", kPageSizeBytes}});
  stream.part().zero("pc.ram", 0).zero("", 0x1000).zero("r", 0).eos().footer();
  stream.part().page("pc.ram", 0x2000, 1).eos().footer();
  stream.end().eos().footer().devices();
  ByteBuffer conversation;
  qemu_stream::append_pong(conversation, 1);
  qemu_stream::append_request_pages(conversation, "r", 0, kPageSizeBytes);
  qemu_stream::append_request_pages(conversation, "", kPageSizeBytes, kPageSizeBytes);
  qemu_stream::append_received_bitmap(conversation, "r", ByteBuffer(8));
  qemu_stream::append_resume_ack(conversation, 1);
  qemu_stream::append_shut(conversation, 0);
  const bool written = write(std::string(argv[1]) + "/good", stream.bytes()) &&
                       write(std::string(argv[2]) + "/good", conversation);
  if (!written) std::fprintf(stderr, "make_stream_seeds: cannot write the seeds\n");
  return written ? 0 : 1;
}
