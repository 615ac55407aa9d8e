// SPDX-License-Identifier: GPL-2.0
/*
 * KVM_TDX_INIT_VCPU, and the state in which a TD's vCPU starts: 32-bit protected
 * mode, flat segments, RIP at the reset vector (module: TDH.VP.INIT; reference
 * values in tdx-kvm-abi.md, B.4). All vCPUs start there; nobody sends INIT or SIPI.
 * Departs: CR4.PAE is set, which the guest does not see (cr.c).
 */
#include "tdxe.h"

static void set_seg(struct kvm_vcpu *vcpu, int seg, u16 sel, u8 type, bool s)
{
	struct kvm_segment v = { .selector = sel, .limit = ~0u, .type = type, .present = 1,
				 .s = s, .db = s, .g = s };

	if (!s)
		v.limit = seg == VCPU_SREG_TR ? 0xffff : 0;
	if (seg == VCPU_SREG_LDTR)
		v = (struct kvm_segment) { .type = 2, .present = 1, .limit = 0xffff };
	tdxe_svm.set_segment(vcpu, &v, seg);
}

/* The state in which a TD's vCPU starts: 32-bit protected mode, flat. */
static void init_regs(struct kvm_vcpu *vcpu, u64 rcx, u32 index)
{
	struct desc_ptr dt = { .size = 0xffff };

	memset(vcpu->arch.regs, 0, sizeof(vcpu->arch.regs));
	REG(vcpu, RBX) = TDXE_GPAW;
	REG(vcpu, RCX) = rcx;
	REG(vcpu, R8) = rcx;
	REG(vcpu, RDX) = tdxe.fms;
	REG(vcpu, RSI) = index;
	kvm_rip_write(vcpu, 0xfffffff0);
	kvm_set_rflags(vcpu, 2);
	set_seg(vcpu, VCPU_SREG_CS, 0, 11, true);
	set_seg(vcpu, VCPU_SREG_DS, 0, 3, true);
	set_seg(vcpu, VCPU_SREG_ES, 0, 3, true);
	set_seg(vcpu, VCPU_SREG_FS, 0, 3, true);
	set_seg(vcpu, VCPU_SREG_GS, 0, 3, true);
	set_seg(vcpu, VCPU_SREG_SS, 0, 3, true);
	set_seg(vcpu, VCPU_SREG_TR, 0, 11, false);
	set_seg(vcpu, VCPU_SREG_LDTR, 0, 2, false);
	tdxe_svm.set_gdt(vcpu, &dt);
	tdxe_svm.set_idt(vcpu, &dt);
	/* CR4 starts as 0x40: VMXE of a real TD is set in hardware but reads as 0. */
	/*
	 * PAE is set behind the guest's back: with EFER.LME = 1, PG = 0 and PAE = 0
	 * QEMU's TCG drops the host's CR0 at #VMEXIT (it loads CR0 before CR4) and
	 * the machine hangs.
	 */
	tdxe_svm.set_cr4(vcpu, X86_CR4_MCE | X86_CR4_PAE);
	to_tv(vcpu)->no_pae = true;
	tdxe_svm.set_efer(vcpu, EFER_LME | EFER_NX | EFER_SCE);
	tdxe_svm.set_cr0(vcpu, X86_CR0_PE | X86_CR0_NE);
	vcpu->arch.pat = 0x0007040600070406ULL;
	to_svm(vcpu)->vmcb->save.g_pat = vcpu->arch.pat;
	kvm_mmu_reset_context(vcpu);
}

int tdxe_init_vcpu(struct kvm_vcpu *vcpu, struct kvm_tdx_cmd *cmd)
{
	struct tdxe_vcpu *tv = to_tv(vcpu);
	u64 base = APIC_DEFAULT_PHYS_BASE | LAPIC_MODE_X2APIC |
		   (kvm_vcpu_is_reset_bsp(vcpu) ? MSR_IA32_APICBASE_BSP : 0);

	if (cmd->flags || tv->inited)
		return -EINVAL;
	if (kvm_apic_set_base(vcpu, base, true))
		return -EINVAL;
	tv->index = atomic_inc_return(&to_td(vcpu->kvm)->nr_vcpus) - 1;
	init_regs(vcpu, cmd->data, tv->index);
	vcpu->arch.mp_state = KVM_MP_STATE_RUNNABLE;
	tv->inited = true;
	return 0;
}
