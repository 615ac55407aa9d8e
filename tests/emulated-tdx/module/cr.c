// SPDX-License-Identifier: GPL-2.0
/*
 * Control registers: what a TD may write, and the moves themselves.
 * Departs: where the host has no PCID, a write of CR4.PCIDE is dropped; CR4.PAE stays set
 * behind the guest's back while paging is off.
 */
#include "tdxe.h"

/*
 * Bits of CR0 and CR4 that a TD cannot have as it likes: #GP where the CPU that the
 * TD sees would fault, #VE where only TDX is in the way.
 */
static int cr_rule(struct kvm_vcpu *vcpu, int cr, u64 val)
{
	u64 absent;

	if (cr == 0) {
		if (val >> 32 || !(val & X86_CR0_NE))
			return RULE_GP;
		if (!(val & X86_CR0_PE))
			return val & X86_CR0_PG ? RULE_GP : RULE_VE;
		return val & (X86_CR0_NW | X86_CR0_CD) ? RULE_VE : RULE_NATIVE;
	}
	if (cr == 4) {
		/* Bit 15, key locker, CET, PKS, UINTR and all above do not exist. */
		absent = BIT_ULL(15) | BIT_ULL(19) | GENMASK_ULL(63, 23);
		if (!(to_td(vcpu->kvm)->xfam & XFEATURE_MASK_PKRU))
			absent |= X86_CR4_PKE;
		if (val & absent)
			return RULE_GP;
		return !(val & X86_CR4_MCE) || (val & (X86_CR4_VMXE | X86_CR4_SMXE)) ? RULE_VE : RULE_NATIVE;
	}
	return RULE_NATIVE;
}

int tdxe_handle_cr(struct kvm_vcpu *vcpu)
{
	struct tdxe_insn in;
	int cr, gpr, rule, err = 0;
	u64 val;

	tdxe_decode(vcpu, &in);
	if (in.n < 3)		/* the code is being converted: execute it again */
		return 1;
	if (in.b[in.op] != 0x0f || (in.b[in.op + 1] != 0x20 && in.b[in.op + 1] != 0x22))
		return kvm_emulate_instruction_from_buffer(vcpu, in.b, in.n);

	cr = ((in.b[in.op + 2] >> 3) & 7) | (in.rex & 4 ? 8 : 0);
	gpr = (in.b[in.op + 2] & 7) | (in.rex & 1 ? 8 : 0);
	if (in.b[in.op + 1] == 0x20) {
		val = cr == 0 ? kvm_read_cr0(vcpu) : cr == 3 ? kvm_read_cr3(vcpu) :
		      cr == 4 ? kvm_read_cr4(vcpu) : kvm_get_cr8(vcpu);
		if (cr == 4 && to_tv(vcpu)->no_pae)
			val &= ~(u64)X86_CR4_PAE;
		kvm_register_write_raw(vcpu, gpr, is_64_bit_mode(vcpu) ? val : (u32)val);
	} else {
		val = kvm_register_read_raw(vcpu, gpr);
		if (!is_64_bit_mode(vcpu))
			val = (u32)val;
		rule = cr_rule(vcpu, cr, val);
		if (rule == RULE_VE) {
			tdxe_inject_ve(vcpu, R_CR, cr | gpr << 8, in.len);
			return 1;
		}
		if (rule == RULE_GP) {
			kvm_inject_gp(vcpu, 0);
			return 1;
		}
		/*
		 * PCID is fixed-1 in a TD, but QEMU's TCG has none.  OVMF's AP reset
		 * code toggles PCIDE in the belief that the OS has set it: ignore it.
		 */
		if (cr == 4 && !boot_cpu_has(X86_FEATURE_PCID))
			val &= ~(u64)X86_CR4_PCIDE;
		/* See init_regs(): PAE stays set while paging is off. */
		if (cr == 4 && !is_paging(vcpu)) {
			to_tv(vcpu)->no_pae = !(val & X86_CR4_PAE);
			val |= X86_CR4_PAE;
		}
		err = cr == 0 ? kvm_set_cr0(vcpu, val) : cr == 3 ? kvm_set_cr3(vcpu, val) :
		      cr == 4 ? kvm_set_cr4(vcpu, val) : kvm_set_cr8(vcpu, val);
	}
	if (err)
		kvm_inject_gp(vcpu, 0);
	else
		tdxe_advance(vcpu, in.len);
	return 1;
}
