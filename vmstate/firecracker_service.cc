// When is the client gone? When its process has ended; the connection alone says little (older versions of Firecracker closed it as
// soon as the message was sent). Only where its process cannot be seen, in another process namespace, a closed connection is the end.
#include "vmstate/firecracker_service.h"

#include <algorithm>
#include <utility>

#include "transport/os/page_tables.h"

namespace pageferry {
namespace {

// Takes the userfaultfd; everything else stays the client's.
Result<UserfaultVmm> describe(FirecrackerClient& client) {
  UserfaultVmm vmm{.userfault = std::move(client.userfault),
                   .block_addresses = client.regions.addresses,
                   .source_pages = client.regions.source_pages,
                   .process_fd = client.process.get(),
                   .connection_fd = client.connection.get()};
  // Where backing pages are larger than a page, the kernel's answers are told apart by the page tables.
  if (!client.regions.layout.has_large_pages()) return vmm;
  auto tables = PageTables::open(client.pid);
  if (!tables) return with_context(std::move(tables).error(), "regions of 2 MiB pages");
  vmm.tables.emplace(std::move(*tables));
  return vmm;
}

}  // namespace

Result<std::unique_ptr<FirecrackerService>> FirecrackerService::start(FirecrackerClient client,
                                                                      PageSupply& source,
                                                                      PrefetchOrder order,
                                                                      const Clock& clock) {
  std::unique_ptr<FirecrackerService> service(new FirecrackerService(std::move(client)));
  FirecrackerClient& kept = service->client_;
  PF_ASSIGN(UserfaultVmm vmm, describe(kept));
  const UserfaultPageInOptions options{.page_in = {.order = order},
                                       .serve_until = ServeUntil::vmm_ends,
                                       .bad_pages = BadPages::end_service};
  PF_ASSIGN(service->page_in_, UserfaultPageIn::make(std::move(vmm), kept.regions.layout, source,
                                                     nullptr, options, clock));
  return service;
}

Result<void> FirecrackerService::serve(
    const CancelSignal& stop, const std::function<void(const UserfaultPageInFigures&)>& tell) {
  PF_TRY(page_in_->serve(stop, tell));
  return {};
}

}  // namespace pageferry
