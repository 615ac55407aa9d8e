// SPDX-License-Identifier: GPL-2.0
/*
 * A TD's VM and vCPUs, from creation to destruction.
 *
 * A TD's vCPU state is "protected" for every ioctl but KVM_RUN: vcpu_load() and
 * vcpu_put() switch KVM's protection flags, so that user space is refused while
 * the run loop (LAPIC, FPU, XCR0, event injection) works as for a plain VM.
 * Departs: on a real host the state is out of KVM's reach at all times; here KVM_RUN leaves
 * in kvm_run what it leaves there of a plain VM (if_flag, and registers where kvm_valid_regs
 * asks for them, though that is refused).
 */
#include <asm/syscall.h>
#include "tdxe.h"

int tdxe_vm_init(struct kvm *kvm)
{
	struct tdxe_vm *td = to_td(kvm);
	unsigned long type = kvm->arch.vm_type;
	int r;

	if (type == KVM_X86_TDX_VM)	/* sev_vm_init() warns about unknown types */
		kvm->arch.vm_type = KVM_X86_DEFAULT_VM;
	r = tdxe_svm.vm_init(kvm);
	kvm->arch.vm_type = type;
	if (r || !is_td(kvm))
		return r;
	/* KVM: tdx_vm_init() */
	kvm->arch.has_protected_state = true;
	kvm->arch.has_protected_eoi = true;
	kvm->arch.has_private_mem = true;
	kvm->arch.has_protected_pmu = true;
	kvm->arch.disabled_quirks |= KVM_X86_QUIRK_IGNORE_GUEST_PAT;
	kvm->max_vcpus = min_t(uint, kvm->max_vcpus, tdxe.max_vcpus ?: num_present_cpus());
	mutex_init(&td->mr_lock);
	xa_init(&td->vcpus);
	td->state = TD_NEW;
	return 0;
}

void tdxe_vm_destroy(struct kvm *kvm)
{
	if (is_td(kvm)) {
		tdxe_witness_td(kvm);
		tdxe_sept_destroy(kvm);
		xa_destroy(&to_td(kvm)->vcpus);
		tdxe_key_free(to_td(kvm));
	}
	tdxe_svm.vm_destroy(kvm);
}

/*
 * Is this KVM_RUN? It alone runs a vCPU and may see its state. vcpu->wants_to_run does not tell:
 * with immediate_exit it is false as in any other ioctl, but KVM completes the last exit and makes
 * the guest's FPU state current all the same. Were that state confidential then, it would not be
 * loaded, and a preemption would save the VMM's registers to it. run->immediate_exit cannot tell
 * either: user space may change it at any time.
 *
 * The request is read from the registers of the system call. Outside of one (the last close, in
 * whatever thread) they may hold anything; the VM is then torn down, and no ioctl can follow.
 */
static bool in_run_ioctl(void)
{
	unsigned long args[6];

	syscall_get_arguments(current, current_pt_regs(), args);
	return (u32)args[1] == KVM_RUN;
}

static void set_protected(struct kvm_vcpu *vcpu, bool on)
{
	vcpu->arch.guest_state_protected = on;
	vcpu->arch.guest_fpu.fpstate->is_confidential = on;
	if (vcpu->arch.apic)
		vcpu->arch.apic->guest_apic_protected = on;
}

int tdxe_vcpu_create(struct kvm_vcpu *vcpu)
{
	struct tdxe_vm *td = to_td(vcpu->kvm);
	struct tdxe_vcpu *tv;
	int r;

	if (!is_td_vcpu(vcpu))
		return tdxe_svm.vcpu_create(vcpu);
	/* KVM: tdx_vcpu_create(), in this order */
	if (td->state != TD_INITIALIZED)
		return -EIO;
	if (!irqchip_split(vcpu->kvm))
		return -EINVAL;
	tv = kzalloc(sizeof(*tv), GFP_KERNEL_ACCOUNT);
	if (!tv)
		return -ENOMEM;
	tv->vcpu = vcpu;
	r = xa_insert(&td->vcpus, vcpu->vcpu_id, tv, GFP_KERNEL_ACCOUNT);
	if (r) {
		kfree(tv);
		/* KVM looks for another vCPU of this id only after this call. */
		return r == -EBUSY ? -EEXIST : r;
	}
	r = tdxe_svm.vcpu_create(vcpu);
	if (r) {
		xa_erase(&td->vcpus, vcpu->vcpu_id);
		kfree(tv);
		return r;
	}
	/* One fixed TSC offset per TD; KVM must not touch it. */
	vcpu->arch.guest_tsc_protected = true;
	vcpu->arch.tsc_offset = td->tsc_offset;
	vcpu->arch.l1_tsc_offset = td->tsc_offset;
	tdxe_svm.write_tsc_offset(vcpu);
	set_protected(vcpu, true);
	return 0;
}

void tdxe_vcpu_free(struct kvm_vcpu *vcpu)
{
	if (is_td_vcpu(vcpu))
		kfree(xa_erase(&to_td(vcpu->kvm)->vcpus, vcpu->vcpu_id));
	tdxe_svm.vcpu_free(vcpu);
}

/* Called at vCPU creation, after KVM has set the TSC frequency. */
void tdxe_vcpu_reset(struct kvm_vcpu *vcpu, bool init_event)
{
	tdxe_svm.vcpu_reset(vcpu, init_event);
	/*
	 * A TD's TSC is a multiple of 25 MHz; QEMU reads it back and refuses to
	 * rebuild the TD at guest reset otherwise. Departs: it still ticks at the
	 * host's rate, since TCG has no TSC scaling.
	 */
	if (is_td_vcpu(vcpu)) {
		vcpu->arch.virtual_tsc_khz -= vcpu->arch.virtual_tsc_khz % 25000;
		/* Left at 0 by KVM if the VMM asked for less than the host's rate. */
		vcpu->arch.l1_tsc_scaling_ratio = kvm_caps.default_tsc_scaling_ratio;
		vcpu->arch.tsc_scaling_ratio = kvm_caps.default_tsc_scaling_ratio;
	}
}

void tdxe_vcpu_load(struct kvm_vcpu *vcpu, int cpu)
{
	if (is_td_vcpu(vcpu) && !vcpu->scheduled_out)
		set_protected(vcpu, !in_run_ioctl());
	tdxe_svm.vcpu_load(vcpu, cpu);
}

void tdxe_vcpu_put(struct kvm_vcpu *vcpu)
{
	tdxe_svm.vcpu_put(vcpu);
	if (is_td_vcpu(vcpu) && !vcpu->scheduled_out)
		set_protected(vcpu, true);
}
