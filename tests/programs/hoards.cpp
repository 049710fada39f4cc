/*
 * Containers that grow and are never emptied: the usual leak of a service. Everything is held, by a
 * global, by a static variable of a function, by a thread-local variable, and by a variable of main.
 *
 * Stages: ready, (byte: allocate) holding, (byte) end.
 */
#include "account.h"

#include <list>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

std::map<int, std::string> g_sessions;
static std::unordered_map<int, std::vector<char>> cache;

struct node {
    node *next;
    char bytes[200];
};

static thread_local node *recent;

SITE void grow_sessions(int number)
{
    g_sessions.emplace(number, std::string(300, 'x'));
}

SITE void grow_cache(int number)
{
    cache[number].resize(500);
}

SITE void grow_registry(int number)
{
    static std::list<std::vector<int>> registry;
    registry.emplace_back(100, number);
}

SITE void grow_recent(int)
{
    recent = new node{recent, {}};
}

__attribute__((noinline)) static void grow_list(node **list)
{
    *list = new node{*list, {}};
}

__attribute__((noinline)) static void scrub()
{
    volatile char stack[32768];
    for (char volatile &byte : stack)
        byte = 0;
}

int main()
{
    node *pending = nullptr;
    stage("ready", nullptr, 0);
    for (int number = 0; number < 1000; number++) {
        grow_sessions(number);
        grow_cache(number);
        grow_registry(number);
        grow_recent(number);
        grow_list(&pending);
    }
    scrub();
    stage("holding", nullptr, 0);
    check(pending != nullptr && recent != nullptr, "never");
    _exit(0);
}
