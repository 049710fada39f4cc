/*
 * What functions of libraries allocate: given back, or forgotten.
 */
#include "corpus.h"

#include <dirent.h>
#include <openssl/bio.h>
#include <openssl/bn.h>
#include <openssl/evp.h>
#include <regex.h>

/* Each kind of call with its release. */
SITE void match_words(void)
{
    regex_t expression;
    check(regcomp(&expression, "^([a-z]+) *(=|:) *([0-9]+)$", REG_EXTENDED) == 0, "regcomp");
    check(regexec(&expression, "width: 17", 0, NULL, 0) == 0, "regexec");
    regfree(&expression);
}

SITE void list_folder(void)
{
    DIR *folder = opendir("/");
    check(folder != NULL, "opendir");
    while (readdir(folder) != NULL)
        ;
    closedir(folder);
}

SITE void read_lines(void)
{
    static char *line;
    static size_t size;
    FILE *file = fopen("/proc/self/limits", "r");
    check(file != NULL, "fopen");
    while (getline(&line, &size, file) > 0)
        ;
    fclose(file);
}

static void library_turn(void)
{
    for (unsigned i = times(5); i > 0; i--) {
        match_words();
        list_folder();
        read_lines();
    }
}

/* Digests, numbers and buffers of OpenSSL. */
SITE void digest(void)
{
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    unsigned char result[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    check(EVP_DigestInit_ex(context, EVP_sha256(), NULL) == 1, "EVP_DigestInit_ex");
    EVP_DigestUpdate(context, "some text", 9);
    EVP_DigestFinal_ex(context, result, &length);
    EVP_MD_CTX_free(context);
}

SITE void buffer(void)
{
    BIO *memory = BIO_new(BIO_s_mem());
    BIO_printf(memory, "%500d", 1);
    BIO_free(memory);
}

SITE void multiply(void)
{
    BN_CTX *context = BN_CTX_new();
    BIGNUM *one = BN_new(), *two = BN_new();
    BN_set_word(one, 12345);
    BN_set_word(two, 67890);
    BN_mul(one, one, two, context);
    BN_free(one);
    BN_free(two);
    BN_CTX_free(context);
}

static void crypto_turn(void)
{
    for (unsigned i = times(15); i > 0; i--) {
        digest();
        buffer();
        multiply();
    }
}

/* The line that getline made is the caller's. */
SITE void forget_line(void)
{
    char *line = NULL;
    size_t size = 0;
    FILE *file = fopen("/proc/self/limits", "r");
    check(file != NULL, "fopen");
    check(getline(&line, &size, file) > 0, "getline");
    fclose(file);
}

static void lines_turn(void)
{
    library_turn();
    for (unsigned i = times(5); i > 0; i--)
        forget_line();
}

SITE void forget_folder(void) { check(opendir("/") != NULL, "opendir"); }

static void folders_turn(void)
{
    library_turn();
    for (unsigned i = times(3); i > 0; i--)
        forget_folder();
}

/* A compiled expression is a graph of many blocks. */
SITE void forget_expression(void)
{
    regex_t expression;
    check(regcomp(&expression, "^[a-z]+$", REG_EXTENDED) == 0, "regcomp");
    memset(&expression, 0, sizeof expression);
}

static void expression_turn(void)
{
    library_turn();
    for (unsigned i = times(2); i > 0; i--)
        forget_expression();
}

SITE void forget_digest(void)
{
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    check(EVP_DigestInit_ex(context, EVP_sha256(), NULL) == 1, "EVP_DigestInit_ex");
}

static void forget_crypto_turn(void)
{
    crypto_turn();
    for (unsigned i = times(5); i > 0; i--)
        forget_digest();
}

static const struct corpus_case cases[] = {
    {"crypto", NULL, crypto_turn},
    {"forget-crypto", NULL, forget_crypto_turn},
    {"forget-expression", NULL, expression_turn},
    {"forget-folder", NULL, folders_turn},
    {"forget-line", NULL, lines_turn},
    {"library", NULL, library_turn},
};

int main(int argc, char **argv)
{
    return run_corpus(argc, argv, cases, sizeof cases / sizeof *cases);
}
