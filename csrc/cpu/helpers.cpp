#include "cpu/helpers.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

namespace wae {
namespace {

// What a thread and its helpers have in common. They sleep while no seat is free.
class Shared {
 public:
  // Returns when all tasks have run.
  void run(int64_t helpers, int64_t count, const std::function<void(int64_t)>& task) {
    {
      const std::lock_guard lock(mutex_);
      task_ = &task, count_ = count, next_ = 0, seats_ = helpers;
    }
    for (int64_t i = 0; i < helpers; ++i) begun_.notify_one();
    work();
    std::unique_lock lock(mutex_);
    seats_ = 0;  // a helper that wakes only now has nothing to do
    done_.wait(lock, [this] { return working_ == 0; });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  // A helper's life.
  void help() {
    std::unique_lock lock(mutex_);
    while (true) {
      begun_.wait(lock, [this] { return seats_ > 0 || over_; });
      if (over_) return;
      --seats_, ++working_;
      lock.unlock();
      work();
      lock.lock();
      if (--working_ == 0) done_.notify_one();
    }
  }

  void end() {
    const std::lock_guard lock(mutex_);
    over_ = true;
    begun_.notify_all();
  }

 private:
  void work() {
    try {
      for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) (*task_)(i);
    } catch (...) {
      next_ = count_;
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  std::mutex mutex_;
  std::condition_variable begun_, done_;
  const std::function<void(int64_t)>* task_ = nullptr;
  int64_t count_ = 0, seats_ = 0, working_ = 0;
  std::atomic<int64_t> next_{0};
  std::exception_ptr error_;
  bool over_ = false;
};

// A thread's helpers. They are detached: each keeps what it shares alive until it has seen that this ended.
class Helpers {
 public:
  ~Helpers() {
    if (!forked()) shared_->end();
  }

  void run(int64_t threads, int64_t count, const std::function<void(int64_t)>& task) {
    if (forked()) {  // no helper came along. What they share is theirs for ever: one may have held its lock
      shared_ = std::make_shared<Shared>(), helpers_ = 0, process_ = getpid();
    }
    const int64_t wanted = std::max<int64_t>(std::min(threads, count) - 1, 0);
    start(wanted);
    shared_->run(std::min(wanted, helpers_), count, task);
  }

 private:
  bool forked() const { return process_ != getpid(); }

  void start(int64_t wanted) {
    try {
      for (; helpers_ < wanted; ++helpers_) std::thread([shared = shared_] { shared->help(); }).detach();
    } catch (const std::system_error&) {  // no more threads are to be had: then with fewer
    }
  }

  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
  int64_t helpers_ = 0;
  pid_t process_ = getpid();
};

}  // namespace

void run_with_helpers(int64_t threads, int64_t count, const std::function<void(int64_t)>& task) {
  static thread_local Helpers helpers;
  helpers.run(threads, count, task);
}

}  // namespace wae

int wae_cpu_sleeping_threads(int threads) {
  return static_cast<int>(std::exchange(wae::sleeping_threads, static_cast<int64_t>(threads)));
}
