// Helper threads that share the tasks of another thread, and sleep while there are none.

#pragma once

#include <cstdint>
#include <functional>

namespace wae {

// How many threads share this thread's tasks: the thread itself and helpers that sleep between calls. 0 selects
// PyTorch's threads (OpenMP's), which wait for more work in a loop, on cores that another inference engine may need.
inline thread_local int64_t sleeping_threads = 0;

// Runs task(0) to task(count - 1), each once, on this thread and at most `threads` - 1 helpers. Helpers belong to this
// thread: they start when they are first needed (fewer, if the system allows no more threads) and end with it. An
// exception of a task is rethrown here; other tasks may then not have run. On Linux, helpers that need all other cores
// keep off the core that this thread runs on.
void run_with_helpers(int64_t threads, int64_t count, const std::function<void(int64_t)>& task);

}  // namespace wae

// For wae_kernels/threads.py: sets sleeping_threads of the calling thread, and returns its former value.
extern "C" __attribute__((visibility("default"))) int wae_cpu_sleeping_threads(int threads);
