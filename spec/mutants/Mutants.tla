-------------------------------- MODULE Mutants --------------------------------
(***************************************************************************)
(* Wrong protocols: each configuration in this folder replaces one         *)
(* definition of Rendezvous.  Its first line names the invariant that TLC  *)
(* must find violated, and says what is wrong.                             *)
(***************************************************************************)
EXTENDS Rendezvous

Always(r) == TRUE
Never(n) == FALSE

FirstAttempt(a) == a = 1

AnyBootstrap(n) == boot # NoBoot

\* Also while the node is in the round that it says to have left.
MayWriteInside(n) == TRUE

OneLeft(members, r, t) == \E m \in members : t[m] = Absent \/ t[m] >= r

NobodyLeft == Highest(key) = 0
=============================================================================
