/*
 * C++ code without frame pointers whose stacks are hard to unwind. Stages: see
 * unwind.h.
 */
#include "unwind.h"

#include <algorithm>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

/* What is stored here is used, for all that the compiler knows. */
static void *volatile kept;

struct Shape {
    virtual ~Shape() = default;
    virtual void allocate(unsigned long bytes) = 0;
};

struct Square : Shape {
    __attribute__((noinline)) void allocate(unsigned long bytes) override
    {
        kept = new char[bytes];
    }
};

struct Base {
    virtual ~Base() = default;
    long field = 1;
};

/* Called through a thunk, as `Shape` is its second base. */
struct Both : Base, Shape {
    __attribute__((noinline)) void allocate(unsigned long bytes) override
    {
        Square square;
        square.allocate(bytes + static_cast<unsigned long>(field) - 1);
        __asm__ volatile("" : : "r"(&square) : "memory");
    }
};

SITE void virtual_calls(Shape *first, Shape *second)
{
    first->allocate(22001);
    second->allocate(22003);
    kept = nullptr;
}

struct Big {
    char bytes[22005];
};

SITE void call_function(const std::function<void(unsigned long)> &function)
{
    function(22007);
    kept = nullptr;
}

SITE void functions()
{
    auto big = std::make_unique<Big>();
    kept = big.release();
    int captured = 4;
    auto *function = new std::function<void(unsigned long)>([captured](unsigned long bytes) mutable {
        std::vector<int> numbers{3, 1, captured};
        std::sort(numbers.begin(), numbers.end(), [&](int a, int b) {
            if (captured-- == 4)
                kept = new char[bytes];
            return a < b;
        });
    });
    call_function(*function);
    kept = function;
}

SITE void sorting()
{
    std::vector<int> numbers;
    for (int i = 0; i < 100; i++)
        numbers.push_back(i * 37 % 100);
    unsigned compared = 0;
    std::sort(numbers.begin(), numbers.end(), [&compared](int a, int b) {
        if (++compared == 40)
            kept = malloc(22009);
        if (compared == 300)
            kept = malloc(22011);
        return a < b;
    });
    __asm__ volatile("" : : "r"(numbers.data()) : "memory");
}

SITE void containers()
{
    kept = new std::vector<char>(22013);
    kept = new std::string(22014, 'x');
    auto *grown = new std::vector<char>(15000);
    grown->resize(22017);
    grown->insert(grown->begin() + 5, 5, 'x');
    kept = grown;
    auto *text = new std::string(12518, 'x');
    *text += *text;
    kept = text;
    kept = new std::map<int, Big>{{1, Big()}};
    auto *shared = new std::shared_ptr<Big>(std::make_shared<Big>());
    kept = shared;
}

/* Allocates while an exception passes. */
struct Guard {
    unsigned long bytes;
    __attribute__((noinline)) ~Guard()
    {
        kept = malloc(bytes);
        kept = nullptr;
    }
};

struct Thrown : std::runtime_error {
    using std::runtime_error::runtime_error;
    char bytes[23001] = {};
};

SITE void throws(int depth)
{
    Guard guard{23003 + static_cast<unsigned long>(depth) * 2};
    if (depth > 0)
        throws(depth - 1);
    else
        throw Thrown("thrown");
    __asm__ volatile("" : : "r"(&guard) : "memory");
}

struct ThrownAgain : Thrown {
    using Thrown::Thrown;
    char more[1000] = {};
};

/* The stack that is seen is that of the thread in the middle of an unwind. */
SITE void exceptions()
{
    try {
        throws(3);
    } catch (const std::exception &error) {
        kept = malloc(23101);
        kept = new std::exception_ptr(std::current_exception());
    }
    try {
        try {
            throw ThrownAgain("once more");
        } catch (...) {
            kept = new char[23103];
            kept = new std::exception_ptr(std::current_exception());
            throw;
        }
    } catch (const Thrown &error) {
        kept = new char[23105];
    }
}

static void run()
{
    Square square;
    Both both;
    virtual_calls(&square, &both);
    functions();
    sorting();
    containers();
    exceptions();
}

int main()
{
    unwind_rounds(run);
    return 0;
}
