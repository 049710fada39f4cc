/*
 * Every hundredth request fails, and the way out of the failure forgets one of
 * the two buffers.
 *
 * Commands: "handle N", N requests.
 */
#include "driver.h"

#define HEADER_BYTES 55
#define BODY_BYTES 1234

ACCOUNT(make_header);
SITE void *make_header(void)
{
    void *header = kmalloc(HEADER_BYTES, GFP_KERNEL);

    if (header)
        account_allocated(&make_header_account, HEADER_BYTES);
    return header;
}

ACCOUNT(make_body);
SITE void *make_body(void)
{
    void *body = kmalloc(BODY_BYTES, GFP_KERNEL);

    if (body)
        account_allocated(&make_body_account, BODY_BYTES);
    return body;
}

static bool is_bad(unsigned int request)
{
    return request % 100 == 99;
}

static noinline int handle_one(unsigned int request)
{
    int error = -ENOMEM;
    void *header, *body;

    header = make_header();
    if (!header)
        return error;
    body = make_body();
    if (!body)
        goto free_header;
    error = 0;
    /* Should go to where the body is freed. */
    if (is_bad(request))
        goto free_header;
    account_freed(&make_body_account, BODY_BYTES);
    kfree(body);
free_header:
    account_freed(&make_header_account, HEADER_BYTES);
    kfree(header);
    return error;
}

static int handle(unsigned int number)
{
    int error = 0;

    for (unsigned int request = 0; !error && request < number; request++)
        error = handle_one(request);
    return error;
}

static const struct command commands[] = { { "handle", handle }, {} };
static struct account *const accounts[] = { &make_header_account, &make_body_account, NULL };

PLAIN_DRIVER(commands, accounts);
