// C++: streams, maps, vectors and strings that come and go, and objects that are forgotten.
#include <deque>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

extern "C" {
#include "corpus.h"
}

static std::map<unsigned, std::string> sessions;

SITE void change_map()
{
    unsigned key = (unsigned)random_below(500);
    if (random_below(2))
        sessions[key] = std::string(20 + random_below(200), 'x');
    else
        sessions.erase(key);
}

SITE void use_streams()
{
    std::ostringstream out;
    for (int i = 0; i < 40; i++)
        out << "number " << i << ' ';
    std::istringstream in(out.str());
    std::string word;
    while (in >> word)
        ;
    std::cerr << "";
}

static void streams_turn()
{
    for (unsigned i = times(100); i > 0; i--)
        change_map();
    for (unsigned i = times(10); i > 0; i--)
        use_streams();
}

/* A deque that is fed at one end and eaten at the other, and vectors that grow and are dropped. */
static std::deque<std::unique_ptr<std::vector<int>>> work;

SITE void push_work() { work.push_back(std::make_unique<std::vector<int>>(30 + random_below(100))); }

static void containers_turn()
{
    for (unsigned i = times(60); i > 0; i--) {
        push_work();
        std::vector<std::string> parts;
        for (int part = 0; part < 4; part++)
            parts.push_back(std::string(40, 'p'));
    }
    while (work.size() > 300)
        work.pop_front();
}

struct Session {
    std::string name = std::string(50, 'n');
    char rest[80] = {};
};

SITE void forget_object() { used(new Session); }

static void new_turn()
{
    streams_turn();
    for (unsigned i = times(10); i > 0; i--)
        forget_object();
}

/* Two objects that hold each other. */
struct Node {
    std::shared_ptr<Node> other;
    char rest[100] = {};
};

SITE void make_cycle()
{
    auto one = std::make_shared<Node>(), two = std::make_shared<Node>();
    one->other = two;
    two->other = one;
}

static void cycle_turn()
{
    streams_turn();
    for (unsigned i = times(5); i > 0; i--)
        make_cycle();
}

/* A whole table, with all that hangs from it. */
SITE void forget_table()
{
    auto *table = new std::map<int, std::string>;
    for (int i = 0; i < 5; i++)
        (*table)[i] = std::string(40, 't');
    used(table);
}

static void table_turn()
{
    streams_turn();
    for (unsigned i = times(2); i > 0; i--)
        forget_table();
}

static const struct corpus_case cases[] = {
    {"containers", nullptr, containers_turn},
    {"cycle", nullptr, cycle_turn},
    {"new", nullptr, new_turn},
    {"streams", nullptr, streams_turn},
    {"table", nullptr, table_turn},
};

int main(int argc, char **argv)
{
    return run_corpus(argc, argv, cases, sizeof cases / sizeof *cases);
}
