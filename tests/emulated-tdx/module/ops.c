// SPDX-License-Identifier: GPL-2.0
/*
 * The interposer: tdxe_hardware_setup() keeps a copy of kvm-amd's calls and
 * replaces those that must behave differently for a VM of type KVM_X86_TDX_VM.
 * Other VMs go straight to the originals, but for vcpu_run(), see there.
 *
 * It runs at the end of svm_hardware_setup(), before KVM takes the table.
 */
#include "tdxe.h"
#include "compat.h"

struct kvm_x86_ops tdxe_svm;

/* ---- running ------------------------------------------------------------- */

static bool needs_initialization(struct kvm_vcpu *vcpu)
{
	return !to_tv(vcpu)->inited || to_td(vcpu->kvm)->state != TD_RUNNABLE;
}

static void before_run(struct kvm_vcpu *vcpu)
{
	struct kvm_cpuid_entry2 *e = kvm_find_cpuid_entry(vcpu, 0x80000008);

	/*
	 * A guest CPUID with the other GPAW bugs the VM (KVM: tdx_load_mmu_pgd()).
	 * Departs: without KVM_BUG_ON()'s warning, which would be a trouble of this host.
	 */
	if (e && ((e->eax >> 16) & 0xff) > TDXE_GPAW)
		kvm_vm_bugged(vcpu->kvm);
	/* CSTAR is #VE in a TD, but an SVM guest has it without an exit. */
	svm_set_intercept_for_msr(vcpu, MSR_CSTAR, MSR_TYPE_RW, true);
}

#if TDXE_HAS_PRE_RUN
static int op_vcpu_pre_run(struct kvm_vcpu *vcpu)
{
	if (is_td_vcpu(vcpu)) {
		if (needs_initialization(vcpu))
			return -EINVAL;
		before_run(vcpu);
		if (vcpu->kvm->vm_bugged)
			return -EIO;
	}
	return tdxe_svm.vcpu_pre_run(vcpu);
}
#else
static bool op_vcpu_needs_initialization(struct kvm_vcpu *vcpu)
{
	if (!is_td_vcpu(vcpu))
		return tdxe_svm.vcpu_needs_initialization &&
		       tdxe_svm.vcpu_needs_initialization(vcpu);
	if (needs_initialization(vcpu))
		return true;
	before_run(vcpu);
	return false;
}
#endif

/*
 * QEMU's TCG (10.x, 11.1) leaves the vector of an injected external interrupt
 * behind as a pending exception and delivers it a second time if the emulated CPU
 * leaves its loop before the next #VMEXIT. A pending self IPI makes that #VMEXIT
 * come at once. Ordinary VMs need this as much as TDs do.
 *
 * Remove when the L0 of the testbed no longer has the defect.
 */
static u64 force_exit_after_irq(struct kvm_vcpu *vcpu, u64 flags)
{
	u32 inj = to_svm(vcpu)->vmcb->control.event_inj;

	if (tdxe.tcg_irq_exit && (inj & SVM_EVTINJ_VALID) &&
	    (inj & SVM_EVTINJ_TYPE_MASK) == SVM_EVTINJ_TYPE_INTR)
		flags |= KVM_RUN_FORCE_IMMEDIATE_EXIT;
	return flags;
}

static fastpath_t op_vcpu_run(struct kvm_vcpu *vcpu, u64 flags)
{
	if (is_td_vcpu(vcpu)) {
		to_tv(vcpu)->in_hlt = false;
		/* EOIs never exit from a TD (no KVM_EXIT_IOAPIC_EOI, no resample). */
		if (!tdxe.eoi_exits)
			bitmap_zero(vcpu->arch.ioapic_handled_vectors, 256);
	}
	return tdxe_svm.vcpu_run(vcpu, force_exit_after_irq(vcpu, flags));
}

/* ---- MSRs ------------------------------------------------------------------- */

static bool op_has_emulated_msr(struct kvm *kvm, u32 index)
{
	if (kvm && is_td(kvm))
		return tdxe_has_emulated_msr(index);
	return tdxe_svm.has_emulated_msr(kvm, index);
}

/*
 * TDVMCALLs and MSR ioctls of a TD reach the emulated list only; the guest's own accesses, by
 * msr.c, are not held to it.
 */
static bool is_from_outside(struct kvm_vcpu *vcpu)
{
	return is_td_vcpu(vcpu) && (vcpu->arch.guest_state_protected || to_tv(vcpu)->in_vmc_msr);
}

/* KVM: tdx_get_msr() */
static int op_get_msr(struct kvm_vcpu *vcpu, struct msr_data *msr)
{
	bool lmce = vcpu->arch.mcg_cap & MCG_LMCE_P;

	if (!is_from_outside(vcpu))
		return tdxe_svm.get_msr(vcpu, msr);
	switch (msr->index) {
	case MSR_IA32_FEAT_CTL:
		msr->data = FEAT_CTL_LOCKED | (lmce ? FEAT_CTL_LMCE_ENABLED : 0);
		return 0;
	case MSR_IA32_MCG_EXT_CTL:
		if (!msr->host_initiated && !lmce)
			return 1;
		msr->data = vcpu->arch.mcg_ext_ctl;
		return 0;
	}
	return tdxe_has_emulated_msr(msr->index) ? tdxe_svm.get_msr(vcpu, msr) : 1;
}

/* KVM: tdx_set_msr() */
static int op_set_msr(struct kvm_vcpu *vcpu, struct msr_data *msr)
{
	if (!is_from_outside(vcpu))
		return tdxe_svm.set_msr(vcpu, msr);
	if (msr->index == MSR_IA32_MCG_EXT_CTL) {
		if ((!msr->host_initiated && !(vcpu->arch.mcg_cap & MCG_LMCE_P)) ||
		    (msr->data & ~MCG_EXT_CTL_LMCE_EN))
			return 1;
		vcpu->arch.mcg_ext_ctl = msr->data;
		return 0;
	}
	if (tdxe_is_read_only_msr(msr->index) || !tdxe_has_emulated_msr(msr->index))
		return 1;
	return tdxe_svm.set_msr(vcpu, msr);
}

/* ---- memory ------------------------------------------------------------------ */

static void op_load_mmu_pgd(struct kvm_vcpu *vcpu, hpa_t root, int level)
{
	if (is_td_vcpu(vcpu))
		tdxe_sept_sync_root(vcpu->kvm, root);
	tdxe_svm.load_mmu_pgd(vcpu, root, level);
}

/* KVM: tdx_gmem_max_mapping_level(): private memory is mapped by 4 KiB pages. */
static int op_gmem_max_level(struct kvm *kvm, kvm_pfn_t pfn, bool is_private)
{
	if (is_td(kvm))
		return is_private ? PG_LEVEL_4K : 0;
	return tdxe_svm.gmem_max_mapping_level ?
	       tdxe_svm.gmem_max_mapping_level(kvm, pfn, is_private) : 0;
}

/* ---- interrupts ----------------------------------------------------------------- */

static int op_interrupt_allowed(struct kvm_vcpu *vcpu, bool for_injection)
{
	/* TDVMCALL HLT comes with IF=0; its R12 says whether interrupts wake it. */
	if (is_td_vcpu(vcpu) && !for_injection) {
		struct tdxe_vcpu *tv = to_tv(vcpu);

		if (tv->in_hlt)
			return !tv->hlt_blocked;
	}
	return tdxe_svm.interrupt_allowed(vcpu, for_injection);
}

/*
 * CR8 writes always exit, of a TD and of an ordinary VM (OVMF writes CR8): QEMU's TCG
 * aborts (BQL assertion) when a guest writes CR8 while a virtual interrupt is pending.
 * The intercept is on from the start, so nothing is to be done here.
 */
static void op_update_cr8_intercept(struct kvm_vcpu *vcpu, int tpr, int irr)
{
}

/*
 * Asked by KVM in place of its LAPIC while guest_apic_protected is set, which is never in KVM_RUN
 * (tdxe_vcpu_load()); kvm-amd has no such call, and KVM does not look whether there is one.
 */
static bool op_protected_apic_has_interrupt(struct kvm_vcpu *vcpu)
{
	return false;
}

/* No INIT and no SIPI in a TD (KVM: vt_apic_init_signal_blocked()). */
static bool op_apic_init_blocked(struct kvm_vcpu *vcpu)
{
	return is_td_vcpu(vcpu) || tdxe_svm.apic_init_signal_blocked(vcpu);
}

static void op_deliver_sipi(struct kvm_vcpu *vcpu, u8 vector)
{
	if (!is_td_vcpu(vcpu))
		tdxe_svm.vcpu_deliver_sipi_vector(vcpu, vector);
}

/* ---- setup ------------------------------------------------------------------------ */

static const char *missing(void)
{
	if (!npt_enabled || !tdp_mmu_enabled)
		return "nested paging and the TDP MMU (npt=1, tdp_mmu=1)";
	if (pgtable_l5_enabled())
		return "four-level paging of the host (boot it with no5lvl)";
	if (boot_cpu_data.x86_phys_bits < TDXE_GPAW)
		return "48 physical address bits";
	if (nrips)	/* next-RIP exits are handled before tdxe_handle_exit() sees them */
		return "kvm-amd loaded with nrips=0";
	return NULL;
}

static void op_hardware_unsetup(void)
{
	tdxe_witness_teardown();
	tdxe_svm.hardware_unsetup();
}

void tdxe_hardware_setup(struct kvm_x86_ops *ops)
{
	const char *why;

	memcpy(&tdxe_svm, ops, sizeof(tdxe_svm));
	/* For ordinary VMs as well. */
	ops->vm_size = sizeof(struct tdxe_kvm);
	ops->vcpu_run = op_vcpu_run;
	if (!tdxe.enabled)
		return;
	why = missing();
	if (why) {
		pr_warn("not offered: needs %s\n", why);
		return;
	}
	ops->hardware_unsetup = op_hardware_unsetup;
	ops->vm_init = tdxe_vm_init;
	ops->vm_destroy = tdxe_vm_destroy;
	ops->vcpu_create = tdxe_vcpu_create;
	ops->vcpu_free = tdxe_vcpu_free;
	ops->vcpu_reset = tdxe_vcpu_reset;
	ops->vcpu_load = tdxe_vcpu_load;
	ops->vcpu_put = tdxe_vcpu_put;
#if TDXE_HAS_PRE_RUN
	ops->vcpu_pre_run = op_vcpu_pre_run;
#else
	ops->vcpu_needs_initialization = op_vcpu_needs_initialization;
#endif
	ops->handle_exit = tdxe_handle_exit;
	ops->skip_emulated_instruction = tdxe_skip_insn;
	ops->has_emulated_msr = op_has_emulated_msr;
	ops->get_msr = op_get_msr;
	ops->set_msr = op_set_msr;
	ops->load_mmu_pgd = op_load_mmu_pgd;
	ops->gmem_max_mapping_level = op_gmem_max_level;
	ops->set_external_spte = tdxe_set_external_spte;
	ops->free_external_spt = tdxe_free_external_spt;
	ops->interrupt_allowed = op_interrupt_allowed;
	ops->update_cr8_intercept = op_update_cr8_intercept;
	ops->protected_apic_has_interrupt = op_protected_apic_has_interrupt;
	ops->apic_init_signal_blocked = op_apic_init_blocked;
	ops->vcpu_deliver_sipi_vector = op_deliver_sipi;
	ops->mem_enc_ioctl = tdxe_vm_ioctl;
	ops->vcpu_mem_enc_ioctl = tdxe_vcpu_ioctl;
	ops->vcpu_mem_enc_unlocked_ioctl = tdxe_vcpu_unlocked_ioctl;
	kvm_caps.supported_vm_types |= BIT(KVM_X86_TDX_VM);
	tdxe_witness_setup();
	pr_info("emulated TDX enabled: TEST FIXTURE, NO SECURITY\n");
}
