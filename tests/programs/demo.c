/*
 * A server in miniature, with one leak: `cargo xtask run` traces it.
 *
 * Each request is parsed and answered. The answer's buffer is freed on every path; the session
 * that parse_header() remembers for each new client is kept in a list that nothing ever empties.
 * leaktrace should name remember_session() first and build_answer() not at all.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct session {
	struct session *next;
	int client;
	char token[1321]; /* 1,336 bytes in all, to be known again in a report */
};

static struct session *sessions;

/* The functions are not static: gcc inlines static ones that are called once. */
void remember_session(int client)
{
	struct session *session = malloc(sizeof(*session)); /* leaked */

	if (!session)
		exit(1);
	session->client = client;
	memset(session->token, 'x', sizeof(session->token));
	session->next = sessions;
	sessions = session;
}

int parse_header(int request)
{
	/* Two requests of three come from a client that was not seen before. */
	if (request % 3 != 0)
		remember_session(request);
	return 64 + request % 512;
}

char *build_answer(size_t length)
{
	char *answer = malloc(length); /* freed by send_answer() */

	if (!answer)
		exit(1);
	memset(answer, 'y', length);
	return answer;
}

void send_answer(char *answer)
{
	free(answer);
}

void handle_request(int request)
{
	int length = parse_header(request);
	char *answer = build_answer(length);

	send_answer(answer);
}

int main(void)
{
	/* Ends by itself after two minutes, should nobody stop it. */
	alarm(120);
	for (int request = 0;; request++) {
		handle_request(request);
		usleep(2000);
	}
}
