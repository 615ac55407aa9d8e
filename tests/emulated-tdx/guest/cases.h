/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/* Where the firmware of the TD cases has what; see cases.c. */
#ifndef CASES_H
#define CASES_H

#define IMAGE		0xffff0000
#define IMAGE_SIZE	0x10000
#define MAX_VCPUS	320
#define HOB		0x800000
#define HOB_SIZE	0x10000
#define STACKS		0x900000
#define STACK_SIZE	0x800
#define SHARED_BIT	0x800000000000

/* What the cases use of RAM: at least 64 MiB. */
#define TEXT_PAGE	(12 << 20)	/* of a fatal error */
#define CALL_PAGE	(13 << 20)	/* of the single calls */
#define UNACCEPTED	(14 << 20)	/* never accepted */
#define STORM_FROM	(16 << 20)	/* 2 MiB for all vCPUs together, then 2 MiB for each */

#endif
