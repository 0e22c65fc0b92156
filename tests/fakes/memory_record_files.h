// MemoryRecordStore and MemoryRecordFiles: a directory in memory that does what real stores do in
// bad moments.
//
// Fault model, per operation (counted from 0 in the order of calls): it fails before anything
// happened; it happens and the reply is lost; a link hangs in the server and lands when the test
// says so, even if its temporary is gone by then; the store refuses; the process dies before or
// after it; a write is torn. A power cut takes every name back that was not there at the last sync
// of the directory.
//
// Thread rule: one thread.
#pragma once

#include <cerrno>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "transport/record_files.h"

namespace pageferry::testing_support {

enum class RecordFault {
  none,
  fails,        // EIO, nothing happened
  reply_lost,   // happened, yet EIO
  hangs,        // link only: EIO, and it lands later
  refused,      // ENOSPC, nothing happened
  dies_before,  // ProcessDied, nothing happened
  dies_after,   // happened, then ProcessDied
  torn,         // write_new only: half is there, then ProcessDied
};

struct ProcessDied {};

using SharedBytes = std::shared_ptr<const std::string>;

class MemoryRecordStore {
 public:
  std::map<std::string, SharedBytes> names;
  std::map<std::string, SharedBytes> durable;
  std::vector<std::pair<std::string, SharedBytes>> hanging;

  bool link(const SharedBytes& bytes, const std::string& to) {
    return names.emplace(to, bytes).second;
  }
  void land_hanging_links() {
    for (const auto& [to, bytes] : std::exchange(hanging, {})) link(bytes, to);
  }
  void power_cut() { names = durable; }
  std::vector<std::string> list() const {
    std::vector<std::string> all;
    for (const auto& [name, bytes] : names) all.push_back(name);
    return all;
  }
};

class MemoryRecordFiles final : public RecordFiles {
 public:
  using Faults = std::function<RecordFault(std::size_t operation, std::string_view call)>;

  explicit MemoryRecordFiles(MemoryRecordStore& store) : store_(store) {}

  // Asked before every operation; the call is "write_new", "link", "unlink", "sync", "refresh",
  // "read" or "list".
  Faults faults = [](std::size_t, std::string_view) { return RecordFault::none; };
  // Runs after every read, with the number of reads so far.
  std::function<void(std::size_t)> after_read = [](std::size_t) {};
  std::function<void()> on_pause = [] {};
  std::size_t operations = 0;
  std::size_t pauses = 0;

  Result<void> write_new(const std::string& name, std::string_view bytes) override {
    return act("write_new", name, [&](RecordFault fault) -> Result<void> {
      if (fault == RecordFault::torn) bytes = bytes.substr(0, bytes.size() / 2);
      const bool made = store_.names.emplace(name, std::make_shared<std::string>(bytes)).second;
      if (!made) return syscall_error("create", name, EEXIST);
      return {};
    });
  }

  Result<void> link(const std::string& from, const std::string& to) override {
    return act("link", to, [&](RecordFault fault) -> Result<void> {
      const auto source = store_.names.find(from);
      if (source == store_.names.end()) return syscall_error("link", to, ENOENT);
      if (fault == RecordFault::hangs) {
        store_.hanging.emplace_back(to, source->second);
        return syscall_error("link", to, EIO);
      }
      if (!store_.link(source->second, to)) return syscall_error("link", to, EEXIST);
      return {};
    });
  }

  Result<void> unlink(const std::string& name) override {
    return act("unlink", name, [&](RecordFault) -> Result<void> {
      if (store_.names.erase(name) == 0) return syscall_error("unlink", name, ENOENT);
      return {};
    });
  }

  Result<void> sync_directory() override {
    return act("sync", "directory", [&](RecordFault) -> Result<void> {
      store_.durable = store_.names;
      return {};
    });
  }

  Result<void> refresh_directory() override {
    return act("refresh", "directory", [](RecordFault) -> Result<void> { return {}; });
  }

  Result<std::optional<std::string>> read_fresh(const std::string& name, std::size_t) override {
    std::optional<std::string> bytes;
    PF_TRY(act("read", name, [&](RecordFault) -> Result<void> {
      const auto found = store_.names.find(name);
      if (found != store_.names.end()) bytes = *found->second;
      return {};
    }));
    after_read(++reads_);
    return bytes;
  }

  Result<std::vector<std::string>> list() override {
    PF_TRY(act("list", "directory", [](RecordFault) -> Result<void> { return {}; }));
    return store_.list();
  }

  void pause(Milliseconds, const CancelSignal&) override {
    ++pauses;
    on_pause();
  }

 private:
  template <typename Effect>
  Result<void> act(std::string_view call, const std::string& subject, Effect effect) {
    const RecordFault fault = faults(operations++, call);
    switch (fault) {
      case RecordFault::fails:
        return syscall_error(call, subject, EIO);
      case RecordFault::refused:
        return syscall_error(call, subject, ENOSPC);
      case RecordFault::dies_before:
        throw ProcessDied();
      default:
        break;
    }
    Result<void> result = effect(fault);
    if (fault == RecordFault::dies_after || fault == RecordFault::torn) throw ProcessDied();
    if (fault == RecordFault::reply_lost) return syscall_error(call, subject, EIO);
    return result;
  }

  MemoryRecordStore& store_;
  std::size_t reads_ = 0;
};

}  // namespace pageferry::testing_support
