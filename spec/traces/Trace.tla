--------------------------------- MODULE Trace ---------------------------------
(***************************************************************************)
(* Whether runs of the simulation are behaviours of Rendezvous.  The       *)
(* generated module TraceData contains the traces: for each the lines that *)
(* tests/simulation/trace.py writes.  Each line is a step of the           *)
(* specification that changes the state as the line says.  What a trace    *)
(* does not show, such as a coordinator that reads the run, is a hidden    *)
(* step, allowed if the next line needs it.                                *)
(*                                                                         *)
(* TLC prints how many lines of each trace it could follow.                *)
(***************************************************************************)
EXTENDS Rendezvous, Sequences, TraceData

VARIABLES
    trace,  \* the number of the trace
    next    \* the number of its next line

Line == Traces[trace][next]
N == Line.node

\* In place of definitions of Rendezvous.  Traces have real attempt ids, and different limits.
AnyAttempt(a) == rosters[a] = NoRoster

Usable(number) ==
    LET most == IF number > Line.max THEN Line.max ELSE number
        whole == most - (most % Line.unit)
    IN IF whole >= Line.min THEN whole ELSE 0

EnoughNow(n) == Usable(Cardinality(Candidates(n))) > 0
FitNow(members, candidates) == Cardinality(members) = Usable(Cardinality(candidates)) /\ members # {}

HighestOf(table) == LET rounds == {table[n] : n \in Nodes} \union {0} IN CHOOSE r \in rounds : \A s \in rounds : s <= r

-----------------------------------------------------------------------------
(* The lines.                                                              *)

Joins ==
    /\ Line.kind = "join" /\ Join(N)
    /\ key'[N] = Line.last
    /\ Line.is_elected = (coord' # coord)

Elects   == Line.kind = "elect" /\ Campaign(N)
Loses    == Line.kind = "lose" /\ Lose(N) /\ lease'[N] = "ended"
Observes == Line.kind = "observe" /\ Coordinates(N) /\ c[N].known = record
            /\ c' = [c EXCEPT ![N].table = [n \in Nodes |-> IF n <= Len(Line.table) THEN Line.table[n] ELSE Absent]]
            /\ UNCHANGED <<etcd, late, budget, local>>
Publishes == /\ Line.kind = "publish" /\ c[N].round = Line.round /\ PublishRound(N)
             /\ record'.phase = Line.phase
             /\ Line.joined = Cardinality(Candidates(N))
Chooses == /\ Line.kind = "choose" /\ c[N].round = Line.round
           /\ Choose(N, Line.attempt, {Line.members[k] : k \in DOMAIN Line.members}, Line.first)
Completes == /\ Line.kind = "complete" /\ c[N].round = Line.round /\ Complete(N)
             /\ record'.attempt = Line.attempt

\* Only fields that the specification leaves out have changed.
Edits == /\ Line.kind = "edition" /\ coord.node = N /\ record.round = Line.round /\ ~closed
         /\ UNCHANGED vars

\* The members of the complete round are not known.
Errs == /\ Line.kind = "error" /\ (PublishError(N) \/ Recount(N))
        /\ record'.round = Line.round

Restores == Line.kind = "restore" /\ Restore(N)
Damages  == Line.kind = "damage" /\ Damage /\ record' = NoRecord /\ (Line.boot => boot' = NoBoot)

Closes == /\ Line.kind = "close" /\ closed' = TRUE
          /\ UNCHANGED <<lease, key, coord, record, rosters, boot, done, top, late, budget, local, c>>

\* The request may be late: then the node may have left the round.
Boots ==
    /\ Line.kind = "boot"
    /\ \/ PublishBoot(N) /\ place[N] = Line.attempt
       \/ /\ place[N] # Line.attempt /\ N = rosters[Line.attempt].first /\ rosters[Line.attempt].round <= last[N]
          /\ Apply([kind |-> "boot", node |-> N, attempt |-> Line.attempt])
          /\ UNCHANGED <<late, budget, local, c>>

Returns ==
    LET a == Line.attempt IN
    /\ Line.kind = "return"
    /\ place[N] = a
    /\ met' = [met EXCEPT ![N] = [attempt |-> Line.met_attempt, node |-> Line.met_node]]
    /\ Cardinality(rosters[a].members) = Line.size
    /\ Line.is_first = (N = rosters[a].first)
    /\ UNCHANGED <<etcd, late, budget, last, place, c>>

-----------------------------------------------------------------------------
(* Hidden steps.                                                           *)

\* The node leaves a round, of which it may have become a member without a line: its join did not return.
BeforeJoin ==
    /\ Line.kind = "join" /\ last[N] <= Line.last
    /\ \/ place[N] # 0 /\ Leave(N)
       \/ place[N] = 0 /\ last[N] < Line.last /\ (Return(N) \/ Skip(N)) /\ last'[N] = Line.last
       \* A process whose lease has ended is another node, with the last round of the one before.
       \/ /\ key[N] = Absent /\ lease[N] = "live" /\ last[N] = 0 /\ Line.last > 0
          /\ last' = [last EXCEPT ![N] = Line.last]
          /\ UNCHANGED <<etcd, late, budget, place, met, c>>

FindsItself == Line.kind \in {"boot", "return"} /\ place[N] = 0 /\ Return(N) /\ place'[N] = Line.attempt

BeforeObserve == Line.kind = "observe" /\ c[N].known # record /\ Load(N)
TakesOver     == Line.kind = "observe" /\ c[N].fence # coord.fence /\ Load(N)
BeforeWrite   == Line.kind \in {"publish", "choose"} /\ c[N].round < Line.round /\ Open(N)

-----------------------------------------------------------------------------
InitTrace == Init /\ trace \in 1 .. Len(Traces) /\ next = 1

Shown ==
    Joins \/ Elects \/ Loses \/ Observes \/ Publishes \/ Chooses \/ Completes \/ Edits \/ Errs \/ Restores \/ Damages
    \/ Closes \/ Boots \/ Returns

NextTrace ==
    /\ next <= Len(Traces[trace])
    /\ \/ Shown /\ next' = next + 1 /\ UNCHANGED trace /\ PrintT(<<"followed", trace, next>>)
       \/ (BeforeJoin \/ FindsItself \/ BeforeObserve \/ TakesOver \/ BeforeWrite) /\ UNCHANGED <<trace, next>>

TraceSpec == InitTrace /\ [][NextTrace]_<<vars, trace, next>>
=============================================================================
