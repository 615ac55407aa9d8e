// SPDX-License-Identifier: GPL-2.0
/*
 * TDG.VP.VMCALL, the sub-functions that KVM answers itself or hands to user space as
 * ordinary port, MMIO and MSR exits (GHCI; KVM: handle_tdvmcall()).
 * Departs: a register that the guest's RCX does not pass on is read all the same.
 */
#include "tdxe.h"

int tdxe_vmc_ret(struct kvm_vcpu *vcpu, u64 status)
{
	REG(vcpu, R10) = status;
	return 1;
}

static int vmc_cpuid(struct kvm_vcpu *vcpu)
{
	u32 a = REG(vcpu, R12), b = 0, c = REG(vcpu, R13), d = 0;

	kvm_cpuid(vcpu, &a, &b, &c, &d, false);
	REG(vcpu, R12) = a;
	REG(vcpu, R13) = b;
	REG(vcpu, R14) = c;
	REG(vcpu, R15) = d;
	return tdxe_vmc_ret(vcpu, VMC_OK);
}

static int done_io_in(struct kvm_vcpu *vcpu)
{
	u64 val = 0;

	memcpy(&val, vcpu->arch.pio_data, min_t(int, vcpu->run->io.size, 4));
	REG(vcpu, R11) = val;
	return tdxe_vmc_ret(vcpu, VMC_OK);
}

static int done_plain(struct kvm_vcpu *vcpu)
{
	return tdxe_vmc_ret(vcpu, VMC_OK);
}

static int vmc_io(struct kvm_vcpu *vcpu)
{
	u64 size = REG(vcpu, R12), dir = REG(vcpu, R13), port = REG(vcpu, R14);
	u64 val = dir ? REG(vcpu, R15) : 0;
	struct kvm_run *run = vcpu->run;

	if ((size != 1 && size != 2 && size != 4) || dir > 1)
		return tdxe_vmc_ret(vcpu, VMC_INVALID);
	port &= 0xffff;
	++vcpu->stat.io_exits;
	if (dir ? !kvm_io_bus_write(vcpu, KVM_PIO_BUS, port, size, &val) :
		  !kvm_io_bus_read(vcpu, KVM_PIO_BUS, port, size, &val)) {
		if (!dir)
			REG(vcpu, R11) = val;
		return tdxe_vmc_ret(vcpu, VMC_OK);
	}
	run->exit_reason = KVM_EXIT_IO;
	run->io.direction = dir ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
	run->io.size = size;
	run->io.port = port;
	run->io.count = 1;
	run->io.data_offset = KVM_PIO_PAGE_OFFSET * PAGE_SIZE;
	memcpy(vcpu->arch.pio_data, &val, size);
	vcpu->arch.complete_userspace_io = dir ? done_plain : done_io_in;
	return 0;
}

static int done_mmio_read(struct kvm_vcpu *vcpu)
{
	u64 val = 0;

	memcpy(&val, vcpu->run->mmio.data, min_t(u32, vcpu->run->mmio.len, 8));
	REG(vcpu, R11) = val;
	return tdxe_vmc_ret(vcpu, VMC_OK);
}

/*
 * Any shared address, that of memory too: KVM asks its own devices and then user space, and looks
 * at no slot (tdx_emulate_mmio()).
 */
static int vmc_mmio(struct kvm_vcpu *vcpu)
{
	u64 size = REG(vcpu, R12), dir = REG(vcpu, R13), gpa = REG(vcpu, R14);
	u64 val = dir ? REG(vcpu, R15) : 0;
	struct kvm_run *run = vcpu->run;

	if ((size != 1 && size != 2 && size != 4 && size != 8) || dir > 1 ||
	    !(gpa & TDXE_SHARED) || !((gpa + size - 1) & TDXE_SHARED))
		return tdxe_vmc_ret(vcpu, VMC_INVALID);
	gpa &= ~TDXE_SHARED;
	if (dir) {
		if (!kvm_io_bus_write(vcpu, KVM_FAST_MMIO_BUS, gpa, 0, NULL) ||
		    !kvm_io_bus_write(vcpu, KVM_MMIO_BUS, gpa, size, &val))
			return tdxe_vmc_ret(vcpu, VMC_OK);
	} else if (!kvm_io_bus_read(vcpu, KVM_MMIO_BUS, gpa, size, &val)) {
		REG(vcpu, R11) = val;
		return tdxe_vmc_ret(vcpu, VMC_OK);
	}
	run->exit_reason = KVM_EXIT_MMIO;
	run->mmio.phys_addr = gpa;
	run->mmio.len = size;
	run->mmio.is_write = dir;
	memcpy(run->mmio.data, &val, 8);
	vcpu->arch.complete_userspace_io = dir ? done_plain : done_mmio_read;
	return 0;
}

static int done_rdmsr(struct kvm_vcpu *vcpu)
{
	if (vcpu->run->msr.error)
		return tdxe_vmc_ret(vcpu, VMC_INVALID);
	REG(vcpu, R11) = vcpu->run->msr.data;
	return tdxe_vmc_ret(vcpu, VMC_OK);
}

static int done_wrmsr(struct kvm_vcpu *vcpu)
{
	return tdxe_vmc_ret(vcpu, vcpu->run->msr.error ? VMC_INVALID : VMC_OK);
}

/*
 * KVM hands both calls to its ordinary RDMSR and WRMSR: the filter of user space first, then
 * tdx_get_msr() and tdx_set_msr(), see op_get_msr(). What these refuse has reason INVAL; UNKNOWN is
 * an MSR of the list that common code does not know.
 */
static int vmc_msr(struct kvm_vcpu *vcpu, bool write)
{
	u32 index = REG(vcpu, R12), reason;
	u64 data = write ? REG(vcpu, R13) : 0;
	int r;

	to_tv(vcpu)->in_vmc_msr = true;
	r = write ? kvm_emulate_msr_write(vcpu, index, data) :
		    kvm_emulate_msr_read(vcpu, index, &data);
	to_tv(vcpu)->in_vmc_msr = false;
	if (!r) {
		if (!write)
			REG(vcpu, R11) = data;
		return tdxe_vmc_ret(vcpu, VMC_OK);
	}
	reason = r == KVM_MSR_RET_FILTERED ? KVM_MSR_EXIT_REASON_FILTER :
		 r == KVM_MSR_RET_UNSUPPORTED ? KVM_MSR_EXIT_REASON_UNKNOWN :
		 KVM_MSR_EXIT_REASON_INVAL;
	if (!(vcpu->kvm->arch.user_space_msr_mask & reason))
		return tdxe_vmc_ret(vcpu, VMC_INVALID);
	vcpu->run->exit_reason = write ? KVM_EXIT_X86_WRMSR : KVM_EXIT_X86_RDMSR;
	vcpu->run->msr.error = 0;
	memset(vcpu->run->msr.pad, 0, sizeof(vcpu->run->msr.pad));
	vcpu->run->msr.reason = reason;
	vcpu->run->msr.index = index;
	vcpu->run->msr.data = write ? data : 0;
	vcpu->arch.complete_userspace_io = write ? done_wrmsr : done_rdmsr;
	return 0;
}

static int done_kvmcall(struct kvm_vcpu *vcpu)
{
	struct tdxe_vcpu *tv = to_tv(vcpu);

	REG(vcpu, RAX) = 0;
	REG(vcpu, RBX) = tv->saved[1];
	REG(vcpu, RCX) = tv->saved[2];
	REG(vcpu, RDX) = tv->saved[3];
	REG(vcpu, RSI) = tv->saved[4];
	return tdxe_vmc_ret(vcpu, vcpu->run->hypercall.ret);
}

/* R10 != 0: KVM hypercall, number in R10 and arguments in R11..R14. */
static int vmc_kvmcall(struct kvm_vcpu *vcpu)
{
	struct tdxe_vcpu *tv = to_tv(vcpu);
	int r;

	tv->saved[1] = REG(vcpu, RBX);
	tv->saved[2] = REG(vcpu, RCX);
	tv->saved[3] = REG(vcpu, RDX);
	tv->saved[4] = REG(vcpu, RSI);
	REG(vcpu, RAX) = REG(vcpu, R10);
	REG(vcpu, RBX) = REG(vcpu, R11);
	REG(vcpu, RCX) = REG(vcpu, R12);
	REG(vcpu, RDX) = REG(vcpu, R13);
	REG(vcpu, RSI) = REG(vcpu, R14);
	r = ____kvm_emulate_hypercall(vcpu, 0, done_kvmcall);
	return r > 0 ? done_kvmcall(vcpu) : r;
}

static int vmc_rdmsr(struct kvm_vcpu *vcpu)
{
	return vmc_msr(vcpu, false);
}

static int vmc_wrmsr(struct kvm_vcpu *vcpu)
{
	return vmc_msr(vcpu, true);
}

static int vmc_hlt(struct kvm_vcpu *vcpu)
{
	struct tdxe_vcpu *tv = to_tv(vcpu);

	tv->in_hlt = true;
	tv->hlt_blocked = REG(vcpu, R12);
	tdxe_vmc_ret(vcpu, VMC_OK);
	return kvm_emulate_halt_noskip(vcpu);
}

/* Sub-functions by R11; all others are SUBFUNC_UNSUPPORTED. */
static const struct {
	u64 nr;
	int (*handle)(struct kvm_vcpu *vcpu);
} subfunctions[] = {
	{ 10, vmc_cpuid },
	{ 12, vmc_hlt },
	{ 30, vmc_io },
	{ 31, vmc_rdmsr },
	{ 32, vmc_wrmsr },
	{ 48, vmc_mmio },
	{ 0x10000, tdxe_vmc_get_info },		/* GetTdVmCallInfo */
	{ 0x10001, tdxe_vmc_map_gpa },		/* MapGPA */
	{ 0x10002, tdxe_vmc_get_quote },	/* GetQuote */
	{ 0x10003, tdxe_vmc_fatal },		/* ReportFatalError */
	{ 0x10004, tdxe_vmc_event_notify },	/* SetupEventNotifyInterrupt */
};

int tdxe_vmcall(struct kvm_vcpu *vcpu)
{
	int i;

	if (REG(vcpu, R10))
		return vmc_kvmcall(vcpu);
	for (i = 0; i < ARRAY_SIZE(subfunctions); i++)
		if (subfunctions[i].nr == REG(vcpu, R11))
			return subfunctions[i].handle(vcpu);
	return tdxe_vmc_ret(vcpu, VMC_UNSUPP);
}
