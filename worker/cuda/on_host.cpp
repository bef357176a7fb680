// Runs a grid on the host: see on_host.h.

#include "on_host.h"

#include <stdlib.h>

namespace on_host {

thread_local Place here;

namespace {

constexpr unsigned THREADS_MAX = 1024;
constexpr unsigned WARP = 32;
constexpr size_t STACK_BYTES = 64 << 10;
constexpr size_t SHARED_BYTES = 227 << 10;

typedef uint32_t (*Entry)(const void *);

enum State { READY, AT_BLOCK, AT_WARP, DONE };

struct Fiber {
    void *stack_pointer;
    State state;
    // Exchanges so far: lanes of a warp write to two buffers by turns, so that none overwrites what another has yet to read.
    unsigned exchanges;
};

struct Runner {
    Fiber fibers[THREADS_MAX];
    uint32_t lanes[2][THREADS_MAX];
    uint32_t matrices[2][THREADS_MAX][MATRIX_WORDS];
    unsigned char *stacks;
    unsigned char *shared;
    void *stack_pointer;
    unsigned current;
    Entry entry;
    const void *args;
};

thread_local Runner *running;

}  // namespace

// Saves what a function may not change, and goes on where `to` was saved.
extern "C" void on_host_switch(void **from, void *to);
asm(R"(
.text
.globl on_host_switch
.type on_host_switch, @function
on_host_switch:
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
.size on_host_switch, .-on_host_switch
.section .note.GNU-stack,"",@progbits
.text
)");

namespace {

void leave(State state) {
    Runner *runner = running;
    Fiber &fiber = runner->fibers[runner->current];
    fiber.state = state;
    on_host_switch(&fiber.stack_pointer, runner->stack_pointer);
}

void run_thread() {
    running->entry(running->args);
    leave(DONE);
    abort();
}

void prepare(Runner *runner, unsigned thread) {
    Fiber &fiber = runner->fibers[thread];
    fiber.state = READY;
    fiber.exchanges = 0;
    void **top = (void **)(runner->stacks + (thread + 1) * STACK_BYTES);
    // Where `run_thread` would return to, which it does not; its address, for `ret`; six registers.
    *--top = nullptr;
    *--top = (void *)run_thread;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.stack_pointer = top;
}

void resume(Runner *runner, unsigned thread) {
    runner->current = thread;
    here.thread = Index{thread, 0, 0};
    on_host_switch(&runner->stack_pointer, runner->fibers[thread].stack_pointer);
}

bool all_at(Runner *runner, unsigned first, unsigned end, State state) {
    bool any = false;
    for (unsigned i = first; i < end; i++) {
        if (runner->fibers[i].state == DONE) continue;
        if (runner->fibers[i].state != state) return false;
        any = true;
    }
    return any;
}

void release(Runner *runner, unsigned first, unsigned end) {
    for (unsigned i = first; i < end; i++)
        if (runner->fibers[i].state != DONE) runner->fibers[i].state = READY;
}

// Runs a warp's lanes until all wait for the block or are done. False if they wait for lanes that do not come.
bool run_warp(Runner *runner, unsigned first, unsigned end) {
    for (;;) {
        for (unsigned i = first; i < end; i++)
            if (runner->fibers[i].state == READY) resume(runner, i);
        bool waits = false;
        for (unsigned i = first; i < end; i++) waits |= runner->fibers[i].state == AT_WARP;
        if (!waits) return true;
        if (!all_at(runner, first, end, AT_WARP)) return false;
        release(runner, first, end);
    }
}

bool run_block(Runner *runner, unsigned threads) {
    for (unsigned i = 0; i < threads; i++) prepare(runner, i);
    for (;;) {
        for (unsigned first = 0; first < threads; first += WARP) {
            unsigned end = first + WARP < threads ? first + WARP : threads;
            if (!run_warp(runner, first, end)) return false;
        }
        if (!all_at(runner, 0, threads, AT_BLOCK)) break;
        release(runner, 0, threads);
    }
    for (unsigned i = 0; i < threads; i++)
        if (runner->fibers[i].state != DONE) return false;
    return true;
}

}  // namespace

void wait_for_block() { leave(AT_BLOCK); }

const uint32_t *exchange_matrices(const uint32_t (&words)[MATRIX_WORDS]) {
    Runner *runner = running;
    const unsigned thread = runner->current;
    auto &matrices = runner->matrices[runner->fibers[thread].exchanges++ & 1];
    memcpy(matrices[thread], words, sizeof words);
    leave(AT_WARP);
    return matrices[thread / WARP * WARP];
}

uint32_t exchange(uint32_t value, unsigned lane) {
    Runner *runner = running;
    unsigned thread = runner->current;
    uint32_t *lanes = runner->lanes[runner->fibers[thread].exchanges++ & 1];
    lanes[thread] = value;
    leave(AT_WARP);
    return lanes[thread / WARP * WARP + lane % WARP];
}

extern "C" void *on_host_new_runner() {
    Runner *runner = (Runner *)calloc(1, sizeof(Runner));
    if (!runner) return nullptr;
    runner->stacks = (unsigned char *)aligned_alloc(64, THREADS_MAX * STACK_BYTES);
    runner->shared = (unsigned char *)aligned_alloc(64, SHARED_BYTES);
    return runner;
}

extern "C" void on_host_free_runner(void *pointer) {
    Runner *runner = (Runner *)pointer;
    free(runner->stacks);
    free(runner->shared);
    free(runner);
}

// 0 if every thread of every block came to its end, 1 if some waited for others that never came.
extern "C" uint32_t on_host_run(void *pointer, Entry entry, const void *args, const uint32_t *grid, uint32_t threads) {
    Runner *runner = (Runner *)pointer;
    running = runner;
    runner->entry = entry;
    runner->args = args;
    here.shared = runner->shared;
    here.block_count = Index{grid[0], grid[1], grid[2]};
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                here.block = Index{x, y, z};
                // What a block finds in shared memory is anything: here NaN, so that a read before a write shows.
                memset(runner->shared, 0xff, 4096);
                if (!run_block(runner, threads)) return 1;
            }
    return 0;
}

}  // namespace on_host
