// The machine that runs a grid, one block after the other. Each thread is a fiber; fibers are resumed in random
// order. Memory, with its checks and counts, is in memory.cpp; warp instructions are in warp.cpp.
#include "machine_state.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>

#ifndef __x86_64__
#error "the fiber switch is written for x86-64"
#endif

// switch_stack(save, load): pushes what a call must preserve, saves the stack pointer, continues on the other stack.
asm(R"(
.text
.type switch_stack, @function
switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size switch_stack, .-switch_stack
)");
extern "C" void switch_stack(void** save, void* load);

namespace {

// Not a power of two: the frames of different fibers must not share cache sets.
constexpr size_t kStackBytes = (1 << 20) + 4096 + 64 * 7;

void to_scheduler(Thread& t) { switch_stack(&t.stack_pointer, t.block->scheduler); }

void wait(Thread& t, u32 site) {
  t.waits_at = site;
  to_scheduler(t);
}

void wake(Thread& t) { t.block->runnable.push_back(&t); }

void thread_main() {
  Thread& t = *current_block->running;
  current_block->launch->kernel(t);
  t.exited = true;
  exit_thread(t);
  to_scheduler(t);
  __builtin_unreachable();
}

std::vector<u32> joined_knowledge(Block& b, const std::vector<Thread*>& threads) {
  std::vector<u32> joined(b.threads.size());
  const u32* last = nullptr;
  for (Thread* t : threads) {
    if (t->known != last)
      for (size_t i = 0; i < joined.size(); i++) joined[i] = std::max(joined[i], t->known[i]);
    last = t->known;
    u32 first = t->id - t->lane;
    for (u32 i = 0; i < 32 && first + i < joined.size(); i++)
      joined[first + i] = std::max(joined[first + i], t->lanes[i]);
    joined[t->id] = t->clock;
  }
  return joined;
}

void complete_barrier(Block& b, Barrier& barrier) {
  b.knowledge.push_back(joined_knowledge(b, barrier.arrived));
  for (Thread* t : barrier.arrived) {
    t->clock++;
    t->arrived_at &= ~(1u << (&barrier - b.barriers));
  }
  for (Thread* t : barrier.waiting) {
    t->known = b.knowledge.back().data();
    wake(*t);
  }
  for (Warp& w : b.warps) flush_requests(w);
  b.launch->barriers++;
  barrier.last_value = barrier.value;
  barrier.arrived.clear();
  barrier.waiting.clear();
  barrier.value = 0;
}

// bar.sync requires all lanes of a warp to arrive at the same statement, on one path. Otherwise hardware may hang,
// or worse.
void check_aligned(Block& b, const Barrier& barrier) {
  std::vector<Thread*> first(b.warps.size());
  for (Thread* t : barrier.waiting) {
    Thread*& other = first[t->id / 32];
    if (!other) other = t;
    if (barrier.aligned && other->waits_at != t->waits_at)
      fail(*t, t->waits_at, "divergent barrier: thread %u waits here, thread %u of its warp at @%u@", t->id,
           other->id, other->waits_at);
    if (barrier.aligned) need_one_path(*t, *other, t->waits_at);
  }
}

// Completes the barrier if all threads that it waits for have arrived. Without a count, that is every live thread.
bool try_complete(Block& b, Barrier& barrier) {
  if (barrier.arrived.empty()) return false;
  u32 wanted = barrier.count ? barrier.count : b.alive;
  if (barrier.arrived.size() < wanted) return false;
  check_aligned(b, barrier);
  complete_barrier(b, barrier);
  return true;
}

bool try_complete(Warp& w, Group& g) {
  u32 wanted = g.mask & w.alive;
  if (!g.arrived || (g.arrived & wanted) != wanted) return false;
  u32 mask = g.arrived;
  Group done = g;
  g = w.groups.back();
  w.groups.pop_back();
  if (done.op) done.op(w, mask, done.site);
  for (u32 lane = 0; lane < 32; lane++)
    if (done.parked >> lane & 1) wake(*w.thread(lane));
  return true;
}

}  // namespace

thread_local Block* current_block;

void fail(Thread& t, u32 site, const char* format, ...) {
  Block& b = *t.block;
  Launch& l = *b.launch;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(l.message, sizeof l.message, format, arguments);
  va_end(arguments);
  l.failed = 1;
  l.failed_site = site;
  std::copy(t.tid, t.tid + 3, l.failed_thread);
  std::copy(t.ctaid, t.ctaid + 3, l.failed_block);
  if (b.in_scheduler) throw Failed{};
  to_scheduler(t);
  __builtin_unreachable();
}

void exit_thread(Thread& t) {
  Block& b = *t.block;
  t.warp->alive &= ~(1u << t.lane);
  b.alive--;
  for (size_t i = 0; i < t.warp->groups.size(); i++)
    if (try_complete(*t.warp, t.warp->groups[i])) i = -1;
  for (Barrier& barrier : b.barriers) try_complete(b, barrier);
}

void barrier(Thread& t, u32 id, u32 count, bool waits, bool aligned, u32 site) {
  Block& b = *t.block;
  if (id >= 16) fail(t, site, "barrier %u: a block has barriers 0 to 15", id);
  if (count % 32) fail(t, site, "barrier count %u is not a multiple of 32", count);
  Barrier& bar = b.barriers[id];
  if (!bar.arrived.empty() && bar.count != count)
    fail(t, site, "barrier %u: the count is %u here and %u where thread %u arrived", id, count, bar.count,
         bar.arrived[0]->id);
  if (t.arrived_at >> id & 1)
    fail(t, site, "barrier %u: the thread arrives again before the barrier is complete", id);
  t.arrived_at |= 1u << id;
  bar.count = count;
  bar.aligned = aligned;
  bar.arrived.push_back(&t);
  t.waits_at = site;
  if (waits) bar.waiting.push_back(&t);
  if (bar.arrived.size() > (count ? count : b.alive))
    fail(t, site, "barrier %u: more threads arrive than its count", id);
  try_complete(b, bar);
  if (waits) to_scheduler(t);
}

int barrier_reduce(Thread& t, u32 id, u32 count, int value, char op, u32 site) {
  Barrier& bar = t.block->barriers[id & 15];
  bar.value += value;
  barrier(t, id, count, true, true, site);
  int total = bar.last_value, all = count ? count : t.block->threads.size();
  return op == 'p' ? total : op == 'a' ? total == all : total > 0;
}

void collective(Thread& t, u32 mask, Collective op, void* operands, u32 site) {
  Warp& w = *t.warp;
  if (!(mask >> t.lane & 1)) fail(t, site, "lane %u is not in the mask 0x%08x that it passes", t.lane, mask);
  w.operands[t.lane] = operands;
  t.waits_at = site;
  u32 self = 1u << t.lane;
  auto same = [&](const Group& g) { return g.site == site && g.mask == mask && g.op == op; };
  auto group = std::find_if(w.groups.begin(), w.groups.end(), same);
  if (group == w.groups.end()) group = w.groups.insert(group, {mask, 0, 0, site, op});
  group->arrived |= self;
  if (try_complete(w, *group)) return;
  group->parked |= self;
  to_scheduler(t);
}

static void join_lanes(Warp& w, u32 mask, u32) {
  u32 joined[32] = {};
  std::vector<Thread*> members;
  bool same = true;
  for (u32 lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) {
      Thread& t = *w.thread(lane);
      for (u32 i = 0; i < 32; i++) joined[i] = std::max(joined[i], t.lanes[i]);
      joined[lane] = t.clock;
      same &= members.empty() || members[0]->known == t.known;
      members.push_back(&t);
    }
  Block& b = *w.block;
  if (!same) b.knowledge.push_back(joined_knowledge(b, members));
  for (Thread* t : members) {
    if (mask == w.alive) t->path = 0, b.forks[t->id].clear();  // the warp is together again
    std::copy(joined, joined + 32, t->lanes);
    if (!same) t->known = b.knowledge.back().data();
    t->clock++;
  }
  flush_requests(w);
}

void warp_barrier(Thread& t, u32 mask) { collective(t, mask, join_lanes, nullptr, 0); }

void diverge(Thread& t, u32 join, u32 way, u32 site) {
  std::vector<Fork>& forks = t.block->forks[t.id];
  if (forks.empty() || forks.back().join != join) forks.push_back({join, site, t.path});
  forks.back().site = site;
  t.path = Random{t.path ^ (static_cast<u64>(site) << 32 | way)}();
}

void rejoin(Thread& t, u32 join) {
  std::vector<Fork>& forks = t.block->forks[t.id];
  if (forks.empty() || forks.back().join != join) return;
  t.path = forks.back().path;
  forks.pop_back();
}

void need_one_path(Thread& t, Thread& other, u32 site) {
  if (t.path == other.path) return;
  const std::vector<Fork>&a = t.block->forks[t.id], &b = t.block->forks[other.id];
  size_t same = 0;
  while (same < a.size() && same < b.size() && a[same].path == b[same].path) same++;
  u32 where = same ? a[same - 1].site : (a.empty() ? b : a)[0].site;
  fail(t, site, "divergent code: threads %u and %u of a warp come here on different paths, from @%u@",
       other.id, t.id, where);
}

void loop_step(Thread& t, u32 site) {
  u64 limit = t.block->launch->loop_limit;
  if (++t.block->loop_steps > limit) fail(t, site, "no end after %llu loop steps", limit + 0ull);
  if (t.block->loop_steps % 1024) return;
  wake(t);
  wait(t, site);
}

namespace {

struct Stacks {
  std::vector<void*> tops;
  void* top(size_t index) {
    while (tops.size() <= index) {
      void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) throw std::bad_alloc();
      tops.push_back(static_cast<u8*>(memory) + kStackBytes);
    }
    return tops[index];
  }
};
thread_local Stacks stacks;

void start_fiber(Thread& t) {
  void** top = static_cast<void**>(stacks.top(t.id)) - t.id % 61 * 8;
  *--top = nullptr;  // keeps the stack 16-byte aligned on entry, as after a call
  *--top = reinterpret_cast<void*>(thread_main);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  t.stack_pointer = top;
}

void report_deadlock(Block& b) {
  Thread* first = nullptr;
  char text[400] = "";
  int used = 0, shown = 0;
  for (size_t i = 0; i < b.threads.size(); i++) {
    Thread& t = b.threads[i];
    if (t.exited || (i && !b.threads[i - 1].exited && b.threads[i - 1].waits_at == t.waits_at)) continue;
    if (!first) first = &t;
    if (shown++ < 6)
      used += snprintf(text + used, sizeof text - used, " from thread %u @%u@;", t.id, t.waits_at);
  }
  fail(*first, first->waits_at, "deadlock (a divergent or miscounted barrier); every thread waits:%s", text);
}

void run_block(Launch& l, u32 x, u32 y, u32 z, u64 seed) {
  Block b(l, x, y, z, seed);
  current_block = &b;
  for (Thread& t : b.threads) start_fiber(t), wake(t);
  while (!b.runnable.empty()) {
    std::swap(b.runnable[b.random() % b.runnable.size()], b.runnable.back());
    b.running = b.runnable.back();
    b.runnable.pop_back();
    b.in_scheduler = false;
    switch_stack(&b.scheduler, b.running->stack_pointer);
    b.in_scheduler = true;
    if (l.failed) throw Failed{};
  }
  if (b.alive) report_deadlock(b);
  for (Warp& w : b.warps) flush_requests(w);
}

}  // namespace

extern "C" int run_grid(Launch* l) {
  u64 blocks = static_cast<u64>(l->grid[0]) * l->grid[1] * l->grid[2];
  try {
    std::vector<u64> order(blocks);
    for (u64 i = 0; i < blocks; i++) order[i] = i;
    Random random{l->seed};
    if (l->shuffle_blocks)
      for (u64 i = blocks; i > 1; i--) std::swap(order[i - 1], order[random() % i]);
    for (u64 i : order)
      run_block(*l, i % l->grid[0], i / l->grid[0] % l->grid[1], i / l->grid[0] / l->grid[1], random());
  } catch (const Failed&) {
  }
  current_block = nullptr;
  return l->failed;
}
