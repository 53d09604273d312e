// Threads that share the work of another, and sleep until there is some.

#pragma once

#include <cstdint>
#include <functional>

namespace wae {

// How many threads share this thread's tasks: itself and helpers that sleep in between. 0 for PyTorch's threads,
// which (OpenMP's) wait for their next work in a loop, on cores that an engine behind our op may need.
inline thread_local int64_t sleeping_threads = 0;

// Runs task(0) to task(count - 1), each once, on this thread and at most `threads` - 1 helpers of its own, which start
// when they are first needed and end with this thread: with fewer, where the system allows no more threads. An
// exception of a task goes to the caller; other tasks may not run then. On Linux helpers that need all other cores keep off
// the one that this thread runs on.
void run_with_helpers(int64_t threads, int64_t count, const std::function<void(int64_t)>& task);

}  // namespace wae

// For wae_kernels/threads.py: sets sleeping_threads of the calling thread, and returns what it was.
extern "C" __attribute__((visibility("default"))) int wae_cpu_sleeping_threads(int threads);
