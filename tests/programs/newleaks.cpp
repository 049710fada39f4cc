/*
 * Hard case for suppressions: blocks of operator new, whose stacks begin in it for Valgrind and
 * LeakSanitizer, and in malloc below it for others. Runs to its end without stages: three blocks of
 * 33 bytes are never freed.
 */
#include <cstring>

namespace json {

class Parser {
public:
    __attribute__((noinline, noclone)) char *parse(const char *text)
    {
        char *copy = new char[33];
        std::strncpy(copy, text, 32);
        return copy;
    }
};

} // namespace json

static char *volatile kept;

extern "C" __attribute__((noinline, noclone)) void load_file(json::Parser &parser)
{
    kept = parser.parse("text");
    kept = nullptr;
}

int main()
{
    json::Parser parser;
    for (int i = 0; i < 3; i++)
        load_file(parser);
    return 0;
}
