// Output. The terminal bar is one line that is overwritten; anything else ends it first.
#include "tools/pageferry/reporter.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "tools/pageferry/mebibytes.h"

namespace pageferry {
namespace {

constexpr Milliseconds kProgressInterval{1000};
constexpr Milliseconds kBarInterval{200};
constexpr int kBarCells = 28;

std::uint64_t number(const nlohmann::json& fields, std::string_view outer, std::string_view name) {
  const auto& object =
      outer.empty() ? fields : fields.value(std::string(outer), nlohmann::json::object());
  const auto found = object.find(std::string(name));
  return found != object.end() && found->is_number() ? found->get<std::uint64_t>() : 0;
}

std::string bar(std::uint64_t done, std::uint64_t total) {
  const auto filled = total == 0 ? 0 : static_cast<int>(done * kBarCells / total);
  std::string cells;
  for (int i = 0; i < kBarCells; ++i) cells += i < filled ? '#' : '.';
  return cells;
}

// Numbers in a summary keep the order of the JSON object; nested objects become dotted names.
void print_summary(const nlohmann::json& object, const std::string& prefix) {
  for (const auto& [key, value] : object.items()) {
    const std::string name = prefix.empty() ? key : fmt::format("{}.{}", prefix, key);
    if (value.is_object()) {
      print_summary(value, name);
    } else {
      fmt::print(stdout, "  {:<34} {}\n", name,
                 value.is_string() ? value.get<std::string>() : value.dump());
    }
  }
}

}  // namespace

Reporter::Reporter(OutputStyle style, Verbosity verbosity, const Clock& clock)
    : style_(style),
      verbosity_(verbosity),
      clock_(clock),
      started_(clock.now()),
      terminal_(::isatty(STDERR_FILENO) == 1) {}

std::int64_t Reporter::elapsed_ms() const {
  return to_ms(clock_.now() - started_);
}

void Reporter::print_json(nlohmann::json object) {
  object["elapsed-ms"] = elapsed_ms();
  const auto line = object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  fmt::print(stdout, "{}\n", line);
  std::fflush(stdout);
}

void Reporter::end_bar() {
  if (bar_open_) fmt::print(stderr, "\n");
  bar_open_ = false;
}

void Reporter::phase(std::string_view name) {
  const std::lock_guard lock(mutex_);
  if (style_ == OutputStyle::json) print_json({{"event", "phase"}, {"phase", name}});
  if (style_ == OutputStyle::human && verbosity_ == Verbosity::verbose) {
    end_bar();
    fmt::print(stderr, "{:>8} ms  phase {}\n", elapsed_ms(), name);
  }
}

void Reporter::progress(std::string_view phase, nlohmann::json fields) {
  const std::lock_guard lock(mutex_);
  fields["phase"] = phase;
  const auto now = clock_.now();
  const bool bar_wanted = terminal_ && style_ == OutputStyle::human;
  const Nanoseconds interval =
      bar_wanted ? Nanoseconds(kBarInterval) : Nanoseconds(kProgressInterval);
  if (phase == last_phase_ && now - last_printed_ < interval) return;
  last_phase_ = phase;
  last_printed_ = now;
  if (style_ == OutputStyle::json) {
    fields["event"] = "progress";
    print_json(std::move(fields));
  } else if (style_ == OutputStyle::human) {
    print_human_progress(phase, fields);
  }
}

void Reporter::print_human_progress(std::string_view phase, const nlohmann::json& fields) {
  const auto total = number(fields, "ram", "total");
  const auto remaining = number(fields, "ram", "remaining");
  const auto done = total > remaining ? total - remaining : 0;
  const std::string line = fmt::format(
      "{:<9} [{}] {:>6} of {} MiB  {:>5} MiB/s  dirty {:>4} MiB/s  pass {}", phase,
      bar(done, total), done / kBytesPerMib, total / kBytesPerMib,
      number(fields, "", "speed") / kBytesPerMib,
      number(fields, "ram", "dirty-pages-rate") * number(fields, "ram", "page-size") / kBytesPerMib,
      number(fields, "ram", "dirty-sync-count"));
  if (terminal_) {
    fmt::print(stderr, "\r{}\033[K", line);
    bar_open_ = true;
  } else {
    fmt::print(stderr, "{:>8} ms  {}\n", elapsed_ms(), line);
  }
}

void Reporter::note(std::string_view text) {
  const std::lock_guard lock(mutex_);
  if (style_ == OutputStyle::json) print_json({{"event", "note"}, {"text", text}});
  if (style_ == OutputStyle::human) {
    end_bar();
    fmt::print(stderr, "pageferry: {}\n", text);
  }
}

void Reporter::warning(std::string_view text) {
  const std::lock_guard lock(mutex_);
  if (style_ == OutputStyle::json) print_json({{"event", "warning"}, {"text", text}});
  if (style_ != OutputStyle::json) {
    end_bar();
    fmt::print(stderr, "pageferry: warning: {}\n", text);
  }
}

void Reporter::error(const Error& error) {
  const std::lock_guard lock(mutex_);
  if (style_ == OutputStyle::json) {
    print_json({{"event", "error"},
                {"error-class", errc_name(error.code)},
                {"error-desc", error.message}});
    return;
  }
  end_bar();
  fmt::print(stderr, "pageferry: {}: {}\n", errc_name(error.code), error.message);
}

void Reporter::finish(nlohmann::json result, ExitCode code) {
  const std::lock_guard lock(mutex_);
  if (style_ == OutputStyle::json) {
    result["event"] = code == ExitCode::done ? "completed" : "failed";
    result["exit-code"] = static_cast<int>(code);
    result["exit-meaning"] = exit_code_meaning(code);
    print_json(std::move(result));
    return;
  }
  end_bar();
  if (style_ == OutputStyle::human) {
    print_summary(result, "");
    std::fflush(stdout);
  }
  if (code != ExitCode::done) fmt::print(stderr, "pageferry: {}\n", exit_code_meaning(code));
}

}  // namespace pageferry
