// Reporter: everything the program says. People get one line a second on stderr (a bar on a
// terminal) and a summary; --json gives one object a line on stdout, with QEMU's own names where it
// has them. Errors are one line.
//
// Thread rule: internally locked.
#pragma once

#include <cstdint>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "tools/pageferry/exit_code.h"
#include "transport/os/clock.h"
#include "transport/os/error.h"

namespace pageferry {

enum class OutputStyle : std::uint8_t { human, json, quiet };
enum class Verbosity : std::uint8_t { normal, verbose };

// Durations are reported in whole milliseconds.
inline std::int64_t to_ms(Nanoseconds duration) {
  return std::chrono::duration_cast<Milliseconds>(duration).count();
}

class Reporter {
 public:
  Reporter(OutputStyle style, Verbosity verbosity, const Clock& clock);

  // A phase begins: JSON always, people only when verbose.
  void phase(std::string_view name);
  // Progress; `fields` as docs/json-output.md says. Throttled to one a second for each phase.
  void progress(std::string_view phase, nlohmann::json fields);
  // Something a person should know that is no error.
  void note(std::string_view text);
  void warning(std::string_view text);
  void error(const Error& error);
  // The end: the summary or the final JSON object, with the exit code and what it means.
  void finish(nlohmann::json result, ExitCode code);

  std::int64_t elapsed_ms() const;

 private:
  void print_json(nlohmann::json object);
  void print_human_progress(std::string_view phase, const nlohmann::json& fields);
  void end_bar();

  const OutputStyle style_;
  const Verbosity verbosity_;
  const Clock& clock_;
  const Nanoseconds started_;
  const bool terminal_;
  std::mutex mutex_;
  Nanoseconds last_printed_{0};  // under mutex_
  std::string last_phase_;       // under mutex_
  bool bar_open_ = false;        // under mutex_
};

}  // namespace pageferry
