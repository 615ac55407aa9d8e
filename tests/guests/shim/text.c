// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* Words on the debug port, the end of the TD, and what a C compiler expects of its library. */
#include "shim.h"

#define DEBUG_PORT	0x402
#define FATAL_TEXT	64

void say(const char *text)
{
	for (; *text; text++)
		port_write(DEBUG_PORT, (u8)*text);
}

/* 16 hex digits at most, without leading zeros. */
static char *hex(char *to, u64 number)
{
	int shift = 60;

	while (shift && !(number >> shift))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		*to++ = "0123456789abcdef"[number >> shift & 15];
	return to;
}

void say_number(const char *text, u64 number)
{
	char digits[18];

	say(text);
	*hex(digits, number) = 0;
	say(" 0x");
	say(digits);
	say("\n");
}

/* Ends the TD with a report of 64 characters at most. */
void fail(const char *what, u64 number)
{
	char text[FATAL_TEXT] = "shim: ";
	char *to = text + 6, *end = text + FATAL_TEXT - 20;

	while (*what && to < end)
		*to++ = *what++;
	*to++ = ' ';
	*to++ = '0';
	*to++ = 'x';
	hex(to, number);
	report_fatal(text);
}

void copy(void *to, const void *from, u64 len)
{
	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(len) : : "memory");
}

void fill(void *to, u8 byte, u64 len)
{
	asm volatile("rep stosb" : "+D"(to), "+c"(len) : "a"(byte) : "memory");
}

int same(const void *a, const void *b, u64 len)
{
	const u8 *x = a, *y = b;

	while (len--)
		if (*x++ != *y++)
			return 0;
	return 1;
}

/* gcc makes calls of these two. */
void *memcpy(void *to, const void *from, u64 len)
{
	copy(to, from, len);
	return to;
}

void *memset(void *to, int byte, u64 len)
{
	fill(to, (u8)byte, len);
	return to;
}
