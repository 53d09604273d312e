// Runs the tasks of an op: on PyTorch's threads or, inside wae_kernels.threads.sleeping, on helpers that sleep between
// calls.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/helpers.h"
#include "cpu/kernels.h"
#include "cpu/sums.h"

namespace wae {

inline int64_t threads_for_tasks() {
  return sleeping_threads ? sleeping_threads : torch::stable::get_num_threads();
}

template <class Task, class F>
void run_tasks(const std::vector<Task>& tasks, const F& run) {
  const int64_t count = static_cast<int64_t>(tasks.size());
  if (sleeping_threads) {
    run_with_helpers(sleeping_threads, count, [&](int64_t i) { run(tasks[i]); });
    return;
  }
  if (count == 1) return run(tasks[0]);  // parallel_for would do the same, but take longer
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run(tasks[i]);
  });
}

// Runs the tasks of a backward pass on PyTorch's threads, in one group for each thread. Each group has its own sums,
// which are then added in the order of the groups, so that results are deterministic for a given number of threads.
template <class Sums, class F>
std::unique_ptr<Collected<Sums>> run_summing_tasks(const std::vector<Task>& tasks, int64_t threads,
                                                   const F& run) {
  const int64_t count = static_cast<int64_t>(tasks.size());
  const int64_t groups = std::clamp<int64_t>(count, 1, std::max<int64_t>(threads, 1));
  std::vector<std::unique_ptr<Collected<Sums>>> sums(groups);
  torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      sums[g] = std::make_unique<Collected<Sums>>();
      for (int64_t i = g * count / groups; i < (g + 1) * count / groups; ++i) run(tasks[i], *sums[g]);
    }
  });
  for (int64_t g = 1; g < groups; ++g) sums[0]->add(*sums[g]);
  return std::move(sums[0]);
}

}  // namespace wae
