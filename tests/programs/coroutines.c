/*
 * Stacks that were made by hand: their outermost function was never called, its address was put
 * there. makecontext's, boost.context's and one of our own. And one with a frame that is none, and
 * one with a return address that is behind no call.
 *
 * Each coroutine runs once a round, on the same memory, and leaks one block.
 */
#include "unwind.h"

#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

/* boost/context/detail/fcontext.hpp, which is C++. */
typedef void *fcontext;
struct transfer {
    fcontext from;
    void *data;
};
extern struct transfer jump_fcontext(fcontext to, void *data);
extern fcontext make_fcontext(void *top, size_t bytes, void (*run)(struct transfer));

enum { STACK_BYTES = 64 * 1024 };
static _Alignas(16) char stacks[4][STACK_BYTES];

SITE void leak(size_t bytes)
{
    LEAK(bytes);
}

SITE void leaf(size_t bytes)
{
    /* The frame pointer is any register here. */
    register size_t number __asm__("rbp") = bytes;
    __asm__ volatile("" : "+r"(number));
    leak(number);
    __asm__ volatile("" : : "r"(number) : "memory");
}

static ucontext_t outside, inside;

SITE void with_link(void)
{
    leaf(20001);
    __asm__ volatile("" ::: "memory");
}

SITE void without_link(void)
{
    leaf(20002);
    check(setcontext(&outside) == 0, "setcontext");
}

static void run_context(char *stack, void (*run)(void), ucontext_t *link)
{
    check(getcontext(&inside) == 0, "getcontext");
    inside.uc_stack.ss_sp = stack;
    inside.uc_stack.ss_size = STACK_BYTES;
    inside.uc_link = link;
    makecontext(&inside, run, 0);
    check(swapcontext(&outside, &inside) == 0, "swapcontext");
}

SITE void in_boost(struct transfer transfer)
{
    leaf(20003);
    jump_fcontext(transfer.from, NULL);
}

/*
 * run_by_hand(top, run): calls `run` on another stack, which returns to the first byte of
 * hand_made. The word above that return address is one of a caller, but no return address: where
 * a string lies.
 */
extern void run_by_hand(void *top, void (*run)(void));
__asm__(".pushsection .text\n"
        ".type run_by_hand, @function\n"
        "run_by_hand:\n"
        ".cfi_startproc\n"
        "  mov %rsp, -8(%rdi)\n"
        "  lea hand_made(%rip), %rax\n"
        "  mov %rax, -24(%rdi)\n"
        "  lea text_of_hand_made(%rip), %rax\n"
        "  mov %rax, -16(%rdi)\n"
        "  lea -24(%rdi), %rsp\n"
        "  jmp *%rsi\n"
        ".cfi_endproc\n"
        ".size run_by_hand, . - run_by_hand\n"
        ".type hand_made, @function\n"
        "hand_made:\n"
        ".cfi_startproc\n"
        "  mov 8(%rsp), %rsp\n"
        "  ret\n"
        ".cfi_endproc\n"
        ".size hand_made, . - hand_made\n"
        ".popsection\n"
        ".pushsection .rodata\n"
        "text_of_hand_made: .asciz \"no code\"\n"
        ".popsection\n");

SITE void by_hand(void)
{
    leaf(20004);
    __asm__ volatile("" ::: "memory");
}

SITE void in_code(void)
{
    leaf(20005);
    __asm__ volatile("" ::: "memory");
}

/*
 * Code made at run time, without frame pointers: rbp is an address on the stack, where something
 * lies that looks like a frame. Its return address is that of code, but behind no call.
 */
static void (*made)(void (*run)(void), void *frame);

/*
 * Code with frame pointers that does as OpenJDK's interpreter: it pushes the address where it
 * wants to go on, and jumps to what comes back there.
 */
static void (*interpreter)(void (*run)(void));
enum { INTERPRETER_AT = 64 };

static void make_code(void)
{
    /*
     * push %rbp; mov %rsp, %rbp; lea 1f(%rip), %rax; push %rax; jmp 2f;
     * 1: pop %rbp; ret;
     * 2: push %rbp; mov %rsp, %rbp; call *%rdi; pop %rbp; ret
     */
    static const unsigned char jumps[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0x8d, 0x05, 0x03, 0x00,
                                          0x00, 0x00, 0x50, 0xeb, 0x02, 0x5d, 0xc3, 0x55, 0x48,
                                          0x89, 0xe5, 0xff, 0xd7, 0x5d, 0xc3};
    /* push %rbp; mov %rsi, %rbp; call *%rdi; pop %rbp; ret */
    static const unsigned char code[] = {0x55, 0x48, 0x89, 0xf5, 0xff, 0xd7, 0x5d, 0xc3};
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(page != MAP_FAILED, "mmap");
    memcpy(page, code, sizeof code);
    memcpy((char *)page + INTERPRETER_AT, jumps, sizeof jumps);
    check(mprotect(page, 4096, PROT_READ | PROT_EXEC) == 0, "mprotect");
    made = (void (*)(void (*)(void), void *))page;
    interpreter = (void (*)(void (*)(void)))((char *)page + INTERPRETER_AT);
}

SITE void through_code(void)
{
    void *volatile frame[2] = {NULL, (void *)run_by_hand};
    made(in_code, (void *)frame);
    __asm__ volatile("" ::: "memory");
}

SITE void in_interpreter(void)
{
    leaf(20006);
    __asm__ volatile("" ::: "memory");
}

SITE void through_interpreter(void)
{
    interpreter(in_interpreter);
    __asm__ volatile("" ::: "memory");
}

static void round_of_all(void)
{
    through_code();
    through_interpreter();
    run_context(stacks[0], with_link, &outside);
    run_context(stacks[1], without_link, NULL);
    jump_fcontext(make_fcontext(stacks[2] + STACK_BYTES, STACK_BYTES, in_boost), NULL);
    run_by_hand(stacks[3] + STACK_BYTES, by_hand);
}

int main(void)
{
    make_code();
    unwind_rounds(round_of_all);
    return 0;
}
