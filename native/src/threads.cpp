#include "threads.h"

#include <chrono>
#include <stdexcept>
#include <string>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif
#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace kvern {
namespace {

constexpr unsigned FLUSH_AND_ZERO = 0x8040;  // MXCSR bits FTZ and DAZ
constexpr auto SPIN = std::chrono::microseconds(50);
thread_local const Pool* running_on = nullptr;

void pause() {
#if defined(__SSE__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

// Spin until `ready()` or the spin time is over; returns ready().
template <class Ready>
bool spin(Ready ready) {
    const auto end = std::chrono::steady_clock::now() + SPIN;
    do {
        for (int i = 0; i < 32; ++i) {
            if (ready()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return ready();
}

void pin_to_nth_allowed_cpu(int n) {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    const int count = CPU_COUNT(&allowed);
    if (count == 0) return;
    int skip = n % count;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (!CPU_ISSET(cpu, &allowed) || skip-- > 0) continue;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        pthread_setaffinity_np(pthread_self(), sizeof one, &one);
        return;
    }
#else
    (void)n;
#endif
}

}  // namespace

FlushDenormals::FlushDenormals() {
#if defined(__SSE__)
    saved_ = _mm_getcsr();
    _mm_setcsr(saved_ | FLUSH_AND_ZERO);
#else
    saved_ = 0;
#endif
}

FlushDenormals::~FlushDenormals() {
#if defined(__SSE__)
    _mm_setcsr(saved_);
#endif
}

Pool::Pool(int workers, bool pin) : workers_(workers) {
    if (workers < 1 || workers > 1024)
        throw std::invalid_argument("threads must be 1 to 1024, not " + std::to_string(workers));
    for (int worker = 1; worker < workers; ++worker) {
        threads_.emplace_back([this, worker, pin] {
            if (pin) pin_to_nth_allowed_cpu(worker);
            serve(worker);
        });
    }
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> lock(parking_);
        closing_ = true;
        generation_.fetch_add(1);
    }
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Pool::run_task(Task task, void* context) {
    if (running_on == this) throw std::logic_error("Pool::run was called from inside a run of the same pool");
    std::lock_guard<std::mutex> one_caller(callers_);
    FlushDenormals flush;
    const Pool* outer = running_on;
    running_on = this;
    if (workers_ > 1) {
        task_ = task;
        context_ = context;
        remaining_.store(workers_ - 1, std::memory_order_relaxed);
        generation_.fetch_add(1);  // publishes the task; ordered before the read of parked_
        if (parked_.load() > 0) {
            {
                std::lock_guard<std::mutex> lock(parking_);
            }
            work_.notify_all();
        }
    }
    task(context, 0, workers_);
    if (workers_ > 1) await_done();
    running_on = outer;
}

void Pool::serve(int worker) {
    FlushDenormals flush;
    running_on = this;
    uint32_t seen = 0;
    for (;;) {
        seen = await_work(seen);
        if (closing_) return;
        task_(context_, worker, workers_);
        if (remaining_.fetch_sub(1) == 1 && caller_parked_.load()) {
            {
                std::lock_guard<std::mutex> lock(parking_);
            }
            done_.notify_one();
        }
    }
}

uint32_t Pool::await_work(uint32_t seen) {
    const auto ready = [&] { return generation_.load(std::memory_order_acquire) != seen; };
    if (!spin(ready)) {
        std::unique_lock<std::mutex> lock(parking_);
        parked_.fetch_add(1);
        work_.wait(lock, [&] { return generation_.load() != seen; });
        parked_.fetch_sub(1);
    }
    return generation_.load(std::memory_order_acquire);
}

void Pool::await_done() {
    if (spin([&] { return remaining_.load(std::memory_order_acquire) == 0; })) return;
    std::unique_lock<std::mutex> lock(parking_);
    caller_parked_.store(true);
    done_.wait(lock, [&] { return remaining_.load() == 0; });
    caller_parked_.store(false);
}

}  // namespace kvern
