#include "threads.h"

#include <chrono>
#include <stdexcept>
#include <string>
#include <utility>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif
#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
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

#if defined(__linux__)
void pin_to(int cpu) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    pthread_setaffinity_np(pthread_self(), sizeof one, &one);
}

bool may_use(int cpu) {
    cpu_set_t allowed;
    // Of the process's first thread: the calling one may be tied already.
    return cpu >= 0 && cpu < CPU_SETSIZE && sched_getaffinity(getpid(), sizeof allowed, &allowed) == 0 &&
           CPU_ISSET(cpu, &allowed);
}
#else
void pin_to(int) {}
bool may_use(int) { return true; }
#endif

void require(bool ok, const std::string& message) {
    if (!ok) throw std::invalid_argument(message);
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

Pool::Pool(int workers, std::vector<int> cpus) : workers_(workers), cpus_(std::move(cpus)) {
    require(workers >= 1 && workers <= 1024, "threads must be 1 to 1024, not " + std::to_string(workers));
    require(cpus_.empty() || cpus_.size() == static_cast<size_t>(workers),
            std::to_string(cpus_.size()) + " CPUs for " + std::to_string(workers) + " threads: one each, or none");
    for (int cpu : cpus_) require(may_use(cpu), "CPU " + std::to_string(cpu) + " is not one this process may use");
    for (int worker = 1; worker < workers; ++worker) {
        threads_.emplace_back([this, worker] {
            if (!cpus_.empty()) pin_to(cpus_[static_cast<size_t>(worker)]);
            serve(worker);
        });
    }
}

void Pool::pin_caller() const {
    if (!cpus_.empty()) pin_to(cpus_[0]);
}

std::unique_ptr<Pool> Pool::share(int first, int count) const {
    require(first >= 0 && count >= 1 && first + count <= workers_,
            "workers " + std::to_string(first) + ".." + std::to_string(first + count - 1) + " are not among the " +
                std::to_string(workers_) + " of this pool");
    std::vector<int> cpus;
    if (!cpus_.empty()) cpus.assign(cpus_.begin() + first, cpus_.begin() + first + count);
    return std::make_unique<Pool>(count, std::move(cpus));
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
