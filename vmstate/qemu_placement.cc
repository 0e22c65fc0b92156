// Asked once, before the capabilities are set, which depend on the answer.
#include "vmstate/qemu_placement.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "vmstate/qemu_ram_blocks.h"

namespace pageferry {

using nlohmann::json;

Result<QemuPlacement> choose_placement(QmpClient& qmp, const MemoryLayout& captured,
                                       PagePlacement wanted, Deadline deadline) {
  PF_ASSIGN(const auto blocks, query_ram_blocks(qmp, deadline));
  QemuPlacement chosen{.layout = {}, .placement = PagePlacement::stream, .access = std::nullopt};
  PF_ASSIGN(chosen.layout, layout_at_destination(captured, blocks));
  if (wanted == PagePlacement::stream) return chosen;
  auto access = QemuMemoryAccess::probe(qmp.peer().pid, chosen.layout, blocks);
  if (access) {
    chosen.placement = PagePlacement::direct;
    chosen.access = std::move(*access);
    return chosen;
  }
  if (wanted == PagePlacement::direct || access.error().code != Errc::unsupported) {
    return tl::make_unexpected(std::move(access).error());
  }
  return chosen;
}

Result<PagePlacement> placement_in_use(QmpClient& qmp, Deadline deadline) {
  if (qmp.qemu_version() < kQemuWithPreempt) return PagePlacement::stream;
  PF_ASSIGN(const json capabilities,
            qmp.execute("query-migrate-capabilities", json::object(), deadline));
  const bool preempt = std::any_of(capabilities.begin(), capabilities.end(), [](const json& one) {
    return one.is_object() && one.value("capability", "") == "postcopy-preempt" &&
           one.value("state", false);
  });
  return preempt ? PagePlacement::stream : PagePlacement::direct;
}

}  // namespace pageferry
