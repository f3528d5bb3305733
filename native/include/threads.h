// A pool of worker threads for kernels: static assignment, short spin, then park.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace kvern {

// Flush-to-zero and denormals-are-zero for the calling thread, restored at the end of the scope.
class FlushDenormals {
  public:
    FlushDenormals();
    ~FlushDenormals();
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;

  private:
    unsigned saved_;
};

// `workers` threads of which the caller is worker 0. Several threads may call `run`; calls are served one at a time.
// Tasks must not throw and must not call `run` on the same pool. Results never depend on the number of workers as
// long as tasks write disjoint memory.
class Pool {
  public:
    // workers >= 1. `cpus` is empty (threads go where the system puts them) or names a CPU for each worker, worker
    // 0's for pin_caller(). Throws std::invalid_argument for another number of CPUs, or one this process may not use.
    explicit Pool(int workers, std::vector<int> cpus = {});
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int workers() const { return workers_; }
    const std::vector<int>& cpus() const { return cpus_; }

    // Ties the calling thread, which is to be worker 0 from now on, to its CPU; nothing when there are no CPUs.
    void pin_caller() const;

    // A pool of its own on the CPUs of workers [first, first + count): what one of several lanes runs on, side by
    // side with the others. Throws std::invalid_argument when these are not workers of this pool.
    std::unique_ptr<Pool> share(int first, int count) const;

    // f(worker, workers) once on every worker; returns when all have finished.
    template <class F>
    void run(F&& f) {
        using Fn = std::remove_reference_t<F>;
        run_task([](void* context, int worker, int workers) { (*static_cast<Fn*>(context))(worker, workers); },
                 const_cast<void*>(static_cast<const void*>(&f)));
    }

    // f(begin, end, worker) over [0, count): each worker gets one contiguous range, cut at multiples of `grain`.
    template <class F>
    void parallel_for(int64_t count, int64_t grain, F&& f) {
        const int64_t chunks = (count + grain - 1) / grain;
        if (chunks <= 0) return;
        run([&](int worker, int workers) {
            const int64_t begin = chunks * worker / workers * grain;
            const int64_t limit = chunks * (worker + 1) / workers * grain;
            const int64_t end = limit < count ? limit : count;
            if (begin < end) f(begin, end, worker);
        });
    }

  private:
    using Task = void (*)(void* context, int worker, int workers);
    void run_task(Task task, void* context);
    void serve(int worker);
    uint32_t await_work(uint32_t seen);
    void await_done();

    const int workers_;
    const std::vector<int> cpus_;
    std::mutex callers_;  // one run at a time
    Task task_ = nullptr;
    void* context_ = nullptr;
    bool closing_ = false;
    alignas(64) std::atomic<uint32_t> generation_{0};
    alignas(64) std::atomic<int> remaining_{0};
    alignas(64) std::atomic<int> parked_{0};
    std::atomic<bool> caller_parked_{false};
    std::mutex parking_;
    std::condition_variable work_, done_;
    std::vector<std::thread> threads_;
};

}  // namespace kvern
