// The sleeping helper threads (csrc/cpu/helpers.h) under the thread sanitizer (make sanitize).

#include "cpu/helpers.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "helpers: %s\n", what);
  std::exit(1);
}

// The counters are not atomic, so that two concurrent runs of a task are a race.
void every_task_runs_once(int64_t threads, int64_t count) {
  std::vector<int> runs(count);
  wae::run_with_helpers(threads, count, [&](int64_t i) { ++runs[i]; });
  for (int each : runs) require(each == 1, "a task did not run once");
}

void errors_reach_the_caller(int64_t threads) {
  std::atomic<int> thrown{0};
  try {
    wae::run_with_helpers(threads, 50, [&](int64_t i) {
      if (i % 7 == 3) ++thrown, throw std::runtime_error("task");
    });
  } catch (const std::runtime_error& error) {
    require(std::string(error.what()) == "task" && thrown > 0, "another error came");
    return;
  }
  require(false, "no error came");
}

// A forked process has none of the helpers of its parent.
[[maybe_unused]] void works_in_a_forked_process() {
  const pid_t child = fork();
  if (child == 0) {
    every_task_runs_once(4, 20);
    _exit(0);
  }
  int status = 1;
  waitpid(child, &status, 0);
  require(status == 0, "a forked process failed");
}

void many_calls() {
  for (int round = 0; round < 40; ++round) {
    for (int64_t threads : {1, 2, 3, 9}) {
      for (int64_t count : {0, 1, 2, 5, 64}) every_task_runs_once(threads, count);
      errors_reach_the_caller(threads);
    }
  }
}

}  // namespace

int main() {
  many_calls();
  for (int round = 0; round < 5; ++round) {  // each of these threads has its own helpers, which end with it
    std::vector<std::thread> callers;
    for (int i = 0; i < 4; ++i) callers.emplace_back(many_calls);
    for (std::thread& caller : callers) caller.join();
  }
#ifndef __SANITIZE_THREAD__  // this sanitizer does not start threads after a fork
  works_in_a_forked_process();
#endif
  std::puts("helpers: every task ran once");
}
