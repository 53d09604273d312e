#include "cpu/helpers.h"

#include <pthread.h>
#include <sched.h>
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
#include <vector>

namespace wae {
namespace {

// The state that a thread shares with its helpers. For each run it offers as many seats as helpers may take part; a
// helper sleeps while no seat is free.
class Shared {
 public:
  // Returns when all tasks have run, and rethrows the first exception of a task.
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

  // The main function of a helper thread.
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

#ifdef __linux__
using Cores = cpu_set_t;

// Reads the cores that a thread may run on; false if the system has more cores than the set can hold.
bool read(pthread_t thread, Cores& cores) {
  return pthread_getaffinity_np(thread, sizeof cores, &cores) == 0;
}

// Sets the cores that a helper may run on.
//
// If the threads of another engine spin on all other cores, the system may wake a helper on the core of its caller in
// every call, where it cannot run before the caller waits for it. If more cores are allowed than there are threads, the
// system finds a free one.
class Affinity {
 public:
  explicit Affinity(pthread_t helper) : helper_(helper) {}

  // Allows the cores of the caller; without `core`, if the helpers need all the others.
  void keep_off(int core, const Cores& callers, int64_t helpers) {
    Cores now;
    if (!read(helper_, now)) return;
    if (!CPU_EQUAL(&now, &set_) && !CPU_EQUAL(&now, &callers)) return;  // others have set it
    set_ = callers;
    CPU_CLR(core, &set_);
    if (CPU_COUNT(&set_) != helpers) set_ = callers;
    if (!CPU_EQUAL(&now, &set_)) pthread_setaffinity_np(helper_, sizeof set_, &set_);
  }

 private:
  pthread_t helper_;
  Cores set_{};
};

int this_core() { return sched_getcpu(); }
#else
struct Cores {};

bool read(pthread_t, Cores&) { return false; }

struct Affinity {  // not supported on other systems
  explicit Affinity(pthread_t) {}
  void keep_off(int, const Cores&, int64_t) {}
};

int this_core() { return 0; }
#endif

// The helpers of a thread. They are detached: each keeps the shared state alive until it has noticed the end of this.
class Helpers {
 public:
  ~Helpers() {
    if (!forked()) shared_->end();
  }

  void run(int64_t threads, int64_t count, const std::function<void(int64_t)>& task) {
    if (forked()) {  // the child has no helpers, and one may have held the lock of the shared state
      shared_ = std::make_shared<Shared>(), helpers_.clear(), process_ = getpid();
    }
    const int64_t wanted = std::max<int64_t>(std::min(threads, count) - 1, 0);
    start(wanted);
    if (const int core = this_core(); core != core_) keep_off(core);
    shared_->run(std::min<int64_t>(wanted, helpers_.size()), count, task);
  }

 private:
  bool forked() const { return process_ != getpid(); }

  void start(int64_t wanted) {
    try {
      helpers_.reserve(wanted);  // may throw, so it comes before a thread is started
      while (static_cast<int64_t>(helpers_.size()) < wanted) {
        std::thread helper([shared = shared_] { shared->help(); });
        helpers_.emplace_back(helper.native_handle());
        helper.detach();
        core_ = kNone;
      }
    } catch (const std::system_error&) {  // no more threads are available: run with fewer
    }
  }

  void keep_off(int core) {
    core_ = core;
    Cores callers;
    if (helpers_.empty() || !read(pthread_self(), callers)) return;
    for (Affinity& helper : helpers_) helper.keep_off(core, callers, helpers_.size());
  }

  static constexpr int kNone = -1;
  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
  std::vector<Affinity> helpers_;
  int core_ = kNone;  // the core that the helpers keep off
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
