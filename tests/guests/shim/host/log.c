// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * The firmware's measuring as a program on this machine: standard input is what stands in for the TD HOB, the kernel
 * and the command line; standard output gets the event log.
 */
#include <stdio.h>
#include <stdlib.h>

#include "../shim.h"

enum { LOG_SIZE = 4096, INPUT_MAX = 1024 };

u64 rtmr_extend(const void *digest, u64 index)
{
	/* 64-byte alignment is what TDG.MR.RTMR.EXTEND wants. */
	return (u64)digest % 64 || index > 3;
}

void fail(const char *what, u64 number)
{
	fprintf(stderr, "%s 0x%lx\n", what, number);
	exit(1);
}

void copy(void *to, const void *from, u64 len)
{
	__builtin_memcpy(to, from, len);
}

void fill(void *to, u8 byte, u64 len)
{
	__builtin_memset(to, byte, len);
}

int main(void)
{
	static u8 log[LOG_SIZE], input[INPUT_MAX];
	u32 len = fread(input, 1, INPUT_MAX, stdin);

	open_log(log, LOG_SIZE);
	measure_hobs(input, len);
	measure_separator();
	measure_payload(input, len / 2);
	measure_parameters(input, len / 3);
	return fwrite(log, 1, LOG_SIZE, stdout) != LOG_SIZE;
}
