/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * The image of the stress TD: 128 KiB of private memory that ends at 4 GiB. The prober
 * (tests/src/bin/tdvmm-tdx-probe) makes the tables and the variables; both sides keep to this map.
 *
 *	+0x00000  header (addresses for the prober), code
 *	+0x04000  page tables: PML4, PDPT, and one page directory each for
 *	          0..1 GiB      private GPA 0..1 GiB
 *	          1..2 GiB      the same GPAs with the shared bit
 *	          3..4 GiB      private, identity (this image)
 *	+0x09000  IDT          +0x0a000  GDT, IDT pointer, TSSs
 *	+0x0b000  variables    +0x10000  stacks, 0x3800 for each vCPU
 *	+0x1fff0  reset vector: a jump to `entry`
 */
#ifndef STRESS_H
#define STRESS_H

#define IMAGE		0xfffe0000
#define STACKS		(IMAGE + 0x10000)
#define STACK_STRIDE	0x3800		/* main 0x1800, then one 0x800 for each of 4 IST entries */
#define MAX_VCPUS	4
#define SHARED_BIT	(1UL << 47)

#define TIMER_VECTOR	0x40
#define IPI_VECTOR	0x41
#define VE_VECTOR	20

/* Ports on which the guest tells its results; port STOP ends the run. */
#define PORT_RESULT	0x500		/* 0x500..0x51f: result 0..31 */
#define PORT_FAULT	0x5fe		/* RIP, error code at +1 */
#define PORT_STOP	0xf4

/* How the TD on strings (puppet.c) is talked to. */
#define PORT_ORDER	0x600
#define PORT_ANSWER	0x604

/* Which private memory is accepted, and which becomes shared. */
#define ACCEPT_FROM	(16UL << 20)
#define SHARE_FROM	(128UL << 20)
#define SHARE_SIZE	(32UL << 20)

/* What each vCPU converts back and forth, 2 MiB apart. */
#define STORM_FROM	(200UL << 20)
#define STORM_PAGES	16

/* What the first vCPU converts while the others accept it. */
#define RACE_FROM	(216UL << 20)
#define RACE_PAGES	16

#endif
