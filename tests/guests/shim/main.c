// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* What the first vCPU does, from the first line of C to Linux. */
#include "shim.h"

static volatile u64 *const os_mailbox = (u64 *)(MAILBOX + MAILBOX_OS);

/* `start` is what the vCPU had in RCX: by the TDX ABI the address of the TD HOB. */
void first_vcpu(u64 start)
{
	u32 vcpus = vcpu_count();
	u64 event_log, mailbox, acpi, rsdp;

	say("shim: started\n");
	if (start != TD_HOB)
		fail("the vCPU starts with RCX", start);
	read_hobs();
	say_number("shim: pieces of memory", range_count);
	accept_memory(vcpus);
	say_number("shim: all memory accepted, vCPUs", vcpus);

	event_log = low_end - EVENT_LOG_SIZE;
	mailbox = event_log - OS_MAILBOX_SIZE;
	acpi = mailbox - ACPI_SIZE;
	if (low_end < EVENT_LOG_SIZE || acpi < PAYLOAD + PAYLOAD_SIZE)
		fail("too little memory, low memory ends at", low_end);
	open_log((void *)event_log, EVENT_LOG_SIZE);
	measure_hobs((const void *)TD_HOB, hob_len);
	rsdp = install_tables(acpi, mailbox, event_log, vcpus);
	measure_separator();
	measure_payload((const void *)PAYLOAD, PAYLOAD_SIZE);
	measure_parameters((const void *)PARAMETERS, PARAMETERS_SIZE);
	say("shim: measured\n");

	/* Accepted memory is zero, so the mailbox holds no command yet. */
	*os_mailbox = mailbox;
	boot_linux(rsdp, acpi, mailbox);
}
