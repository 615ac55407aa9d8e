// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * A TD whose memory is looked at from outside. It does what it is told on COM1, a letter a command, and answers with
 * a line:
 *
 *	p     accepts the page TOKEN_PAGE if needed and writes a new token to it   PRIVATE seed
 *	s     the same page shared, with a new token                               SHARED seed
 *	aN    accepts and writes N - '0' times 16 MiB from REGION on               ACCEPTED
 *	x     converts those to shared and writes a word to each page              ALL-SHARED
 *	y     converts them back, accepts and writes them                          ALL-PRIVATE
 *	q     switches the machine off
 *
 * A token is 64 bytes that both sides make of its seed, a time stamp: the token itself never goes through a port.
 */
#include "td.h"

#define TOKEN_PAGE	(32UL << 20)
#define TOKEN_WORDS	8
#define REGION		(64UL << 20)
#define UNIT		(16UL << 20)

static void write_token(volatile u64 *page, const char *how)
{
	u64 seed = rdtsc();

	for (u64 i = 0; i < TOKEN_WORDS; i++)
		page[i] = word(seed, i);
	say(how);
	say_number(seed);
	say("\n");
}

static void accept_and_write(u64 from, u64 size)
{
	for (u64 p = from; p < from + size; p += 4096) {
		must(accept(p) == 0, "accept");
		*(volatile u64 *)p = p;
	}
}

void td_main(void)
{
	int accepted = 0, shared = 0;
	u64 size = 0;

	say("READY\n");
	for (;;) {
		switch (hear()) {
		case 'p':
			if (shared)
				map(TOKEN_PAGE, 4096, 0);
			if (shared || !accepted)
				must(accept(TOKEN_PAGE) == 0, "accept");
			accepted = 1;
			shared = 0;
			write_token((u64 *)TOKEN_PAGE, "PRIVATE ");
			break;
		case 's':
			map(TOKEN_PAGE, 4096, SHARED_BIT);
			shared = 1;
			write_token((u64 *)(SHARED_ALIAS + TOKEN_PAGE), "SHARED ");
			break;
		case 'a':
			size = (hear() - '0') * UNIT;
			accept_and_write(REGION, size);
			say("ACCEPTED\n");
			break;
		case 'x':
			map(REGION, size, SHARED_BIT);
			for (u64 p = REGION; p < REGION + size; p += 4096)
				*(volatile u64 *)(SHARED_ALIAS + p) = ~p;
			say("ALL-SHARED\n");
			break;
		case 'y':
			map(REGION, size, 0);
			accept_and_write(REGION, size);
			say("ALL-PRIVATE\n");
			break;
		case 'q':
			stop();
		}
	}
}
