/*
 * Starts the other processors by INIT and SIPI. CPUS is how many there are. Each finds its own APIC id
 * and writes a port; the last one sees that all came, each once.
 */
#include "guest.h"
#include "apic.h"
    APIC_ON
    mov ecx, X2APIC_ID
    rdmsr
    EXPECT(0)
    call start_others
    WAIT_FOR(started, CPUS - 1)
    mov eax, [rip + seen]
    EXPECT((1 << CPUS) - 2)
    /* They are told one after the other to say their number. */
    mov ebx, 1
1:  mov [rip + turn], ebx
2:  pause
    cmp dword ptr [rip + turn], 0
    jne 2b
    inc ebx
    cmp ebx, CPUS
    jb 1b
    SAY("smp\n")
    jmp power_off

ap_start:
    /* CPUID agrees: leaf 1 (initial APIC id) and leaf 0xb (x2APIC id). */
    mov eax, 1
    cpuid
    shr ebx, 24
    cmp ebx, ebp
    jne wrong
    mov eax, 0xb
    xor ecx, ecx
    cpuid
    cmp edx, ebp
    jne wrong
    lock bts dword ptr [rip + seen], ebp
    jc wrong
    lock inc dword ptr [rip + started]
1:  pause
    cmp [rip + turn], ebp
    jne 1b
    lea eax, [rbp + '0']
    mov edx, COM1
    out dx, al
    mov dword ptr [rip + turn], 0
    jmp halt
wrong:
    SAY("wrong number\n")
    jmp power_off
ROUTINES
APIC_ROUTINES
.section .bss
started: .long 0
seen: .long 0
turn: .long 0
