------------------------------ MODULE Rendezvous ------------------------------
(***************************************************************************)
(* The coordinated rendezvous (etcd-v3) of docs/design.md: nodes join by   *)
(* writing a key of their own, an elected coordinator writes the round     *)
(* record, and all nodes follow that record.  README.md says what is left  *)
(* out and why.                                                            *)
(*                                                                         *)
(* A request is applied, or it is lost, or it is late: its sender has      *)
(* given up, and etcd applies it at any later time.  A lost answer needs   *)
(* no action of its own: the sender repeats the request, finds its own     *)
(* value and goes on, and nothing that others see happens in between.      *)
(*                                                                         *)
(* A write compares what its sender knew.  etcd compares revisions; the    *)
(* model compares contents, which holds whenever the revisions are equal.  *)
(***************************************************************************)
EXTENDS Integers, FiniteSets, TLC

CONSTANTS
    Nodes,      \* A node is a lease: a process that lost its lease is another node.
    None,       \* no node
    Attempts,   \* the numbers of attempts; enough of them for all that are in use at a time
    MinNodes,
    MaxNodes,
    MaxRound,   \* rounds are 1 .. MaxRound; a node that was in none has last = 0
    MaxLate,    \* how many requests may be late
    MaxLost,    \* how many leases may end
    MaxDamage,  \* how many times the run's records may be deleted or damaged
    MayClose,   \* whether the rendezvous may be closed
    MayLag      \* whether the coordinator's watch may be behind

VARIABLES
    \* etcd
    lease,      \* node -> "live"; "ended": its process goes on; "dead": it does not
    key,        \* node -> the last round that the node has left, as its key says; or Absent
    coord,      \* ctl/coordinator: its node, or None; and the number of elections so far, which is the fence
    record,     \* ctl/round
    rosters,    \* attempt -> the shards under that attempt id; no members: they are damaged or deleted
    boot,       \* ctl/bootstrap
    closed,     \* ctl/closed
    late,       \* the requests that may still be applied
    budget,     \* how many requests were late, leases have ended, and records were damaged
    \* nodes
    last,       \* node -> the last round that the node was in
    place,      \* node -> the attempt of the round that it is in; 0 while it joins
    met,        \* node -> the bootstrap that it received in its round
    \* coordinators
    c,          \* node -> what it knows as a coordinator
    \* for the invariants only
    done,       \* the attempts that completed a round
    top         \* the last of these rounds

etcd  == <<lease, key, coord, record, rosters, boot, closed, done, top>>
local == <<last, place, met>>
vars  == <<etcd, late, budget, local, c>>

Absent   == -1
NoRecord == [round |-> 0, phase |-> "none", attempt |-> 0, previous |-> 0, error |-> FALSE, by |-> 0]
NoRoster == [round |-> 0, members |-> {}, first |-> None]
NoBoot   == [attempt |-> 0, node |-> None]
\* known: the round record; round, members: what it coordinates, without members while the round forms;
\* error: whether the members are not known; pending: the attempt whose roster is written.
Idle == [fence |-> 0, known |-> NoRecord, round |-> 0, members |-> {}, error |-> FALSE, pending |-> 0,
         table |-> [n \in Nodes |-> Absent]]

Init ==
    /\ lease = [n \in Nodes |-> "live"]
    /\ key = [n \in Nodes |-> Absent]
    /\ coord = [node |-> None, fence |-> 0, older |-> {}]
    /\ record = NoRecord
    /\ rosters = [a \in Attempts |-> NoRoster]
    /\ boot = NoBoot
    /\ closed = FALSE
    /\ late = {}
    /\ budget = [late |-> 0, lost |-> 0, damage |-> 0]
    /\ last = [n \in Nodes |-> 0]
    /\ place = [n \in Nodes |-> 0]
    /\ met = [n \in Nodes |-> NoBoot]
    /\ c = [n \in Nodes |-> Idle]
    /\ done = {} /\ top = 0

-----------------------------------------------------------------------------
(* Requests: transactions.  If its comparison fails, a request changes     *)
(* nothing.                                                                *)

Present(t) == {m \in Nodes : t[m] # Absent}

Elected(n) == [node |-> n, fence |-> coord.fence + 1, older |-> IF MaxDamage > 0 THEN Present(key) ELSE {}]

Fenced(r)  == coord.node = r.node /\ coord.fence = r.fence
OwnKey(r)  == lease[r.node] = "live" /\ key[r.node] = r.known
OldBoot(r) == boot = r.known
OldRecord(r) == record = r.known
NotClosed(r) == ~closed

Holds(r) ==
    CASE r.kind = "join"     -> OwnKey(r)
      [] r.kind = "roster"   -> Fenced(r)
      [] r.kind \in {"record", "complete"} -> Fenced(r) /\ OldRecord(r) /\ NotClosed(r)
      [] r.kind = "boot"     -> OldBoot(r)

Apply(r) ==
    CASE r.kind = "join" ->
            /\ key' = [key EXCEPT ![r.node] = r.last]
            /\ coord' = IF coord.node = None THEN Elected(r.node) ELSE coord
            /\ UNCHANGED <<lease, record, rosters, boot, closed, done, top>>
      [] r.kind = "roster" ->
            /\ rosters' = [rosters EXCEPT ![r.attempt] = r.roster]
            /\ done' = done \ {r.attempt}
            /\ UNCHANGED <<lease, key, coord, record, boot, closed, top>>
      [] r.kind = "record" ->
            /\ record' = r.record
            /\ UNCHANGED <<lease, key, coord, rosters, boot, closed, done, top>>
      [] r.kind = "complete" ->
            /\ record' = r.record
            /\ boot' = NoBoot
            /\ done' = done \union {r.record.attempt}
            /\ top' = r.record.round
            /\ UNCHANGED <<lease, key, coord, rosters, closed>>
      [] r.kind = "boot" ->
            /\ boot' = [attempt |-> r.attempt, node |-> r.node]
            /\ UNCHANGED <<lease, key, coord, record, rosters, closed, done, top>>

\* The sender gives up.
Delay(r) ==
    /\ budget.late < MaxLate
    /\ late' = late \union {r}
    /\ budget' = [budget EXCEPT !.late = @ + 1]
    /\ UNCHANGED <<etcd, local, c>>

ApplyLate ==
    \E r \in late :
        /\ Holds(r) /\ Apply(r)
        /\ late' = late \ {r}
        /\ UNCHANGED <<budget, local, c>>

-----------------------------------------------------------------------------
(* Nodes.                                                                  *)

\* A node writes its key when it joins, and again after it left a round.
MayWrite(n) == place[n] = 0

Join(n) ==
    LET r == [kind |-> "join", node |-> n, known |-> key[n], last |-> last[n]] IN
    /\ MayWrite(n) /\ key[n] # last[n] /\ lease[n] = "live"
    /\ \/ Holds(r) /\ Apply(r) /\ UNCHANGED <<late, budget, local, c>>
       \/ Delay(r)

\* The coordinator's key has gone.  A campaign that is late is as good as one that begins later.
MayCampaign(n) == lease[n] = "live" /\ key[n] # Absent /\ coord.node = None

Campaign(n) ==
    /\ MayCampaign(n)
    /\ coord' = Elected(n)
    /\ UNCHANGED <<lease, key, record, rosters, boot, closed, done, top, late, budget, local, c>>

\* A node that joins finds itself in the roster of a complete round.  If it is lost, its view may be old.
MayReturn(n, a) ==
    place[n] = 0 /\ lease[n] # "dead" /\ n \in rosters[a].members /\ rosters[a].round > last[n]

Return(n) ==
    \E a \in done :
        /\ MayReturn(n, a)
        /\ \/ key[n] = last[n] /\ record.attempt = a /\ ~record.error
           \/ lease[n] = "ended"
        /\ place' = [place EXCEPT ![n] = a]
        /\ last' = [last EXCEPT ![n] = rosters[a].round]
        /\ UNCHANGED <<etcd, late, budget, met, c>>

\* The members of the complete round are not known, so a node that joins waits for the next.
Skip(n) ==
    /\ place[n] = 0 /\ lease[n] # "dead" /\ record.error /\ record.round > last[n]
    /\ last' = [last EXCEPT ![n] = record.round]
    /\ UNCHANGED <<etcd, late, budget, place, met, c>>

\* The node stops its workers and leaves the round, to join the next.
Leave(n) ==
    /\ place[n] # 0 /\ lease[n] # "dead" /\ last[n] < MaxRound
    /\ place' = [place EXCEPT ![n] = 0]
    /\ met' = [met EXCEPT ![n] = NoBoot]
    /\ UNCHANGED <<etcd, late, budget, last, c>>

\* A lease ends: the node left the run or died, or it was cut off for too long and does not know it.
Lose(n) ==
    /\ lease[n] = "live" /\ key[n] # Absent /\ budget.lost < MaxLost
    /\ budget' = [budget EXCEPT !.lost = @ + 1]
    /\ key' = [key EXCEPT ![n] = Absent]
    /\ coord' = IF coord.node = n THEN [coord EXCEPT !.node = None, !.older = {}] ELSE coord
    /\ \/ lease' = [lease EXCEPT ![n] = "ended"] /\ UNCHANGED <<place, met, c>>
       \/ /\ lease' = [lease EXCEPT ![n] = "dead"]
          /\ place' = [place EXCEPT ![n] = 0] /\ met' = [met EXCEPT ![n] = NoBoot]
          /\ c' = [c EXCEPT ![n] = Idle]
    /\ UNCHANGED <<record, rosters, boot, closed, done, top, late, last>>

\* A node closes the rendezvous if it is a member of the latest round, or its join timed out.
Close(n) ==
    /\ MayClose /\ ~closed /\ lease[n] # "dead"
    /\ place[n] # 0 => place[n] = IF record.phase = "complete" THEN record.attempt ELSE record.previous
    /\ closed' = TRUE
    /\ UNCHANGED <<lease, key, coord, record, rosters, boot, done, top, late, budget, local, c>>

\* Rank 0 publishes where the workers meet.  If it is lost, its view may be old; then it knows of no other bootstrap.
PublishBoot(n) ==
    LET r == [kind |-> "boot", node |-> n, known |-> boot, attempt |-> place[n]] IN
    /\ place[n] # 0 /\ n = rosters[place[n]].first /\ met[n] = NoBoot /\ lease[n] # "dead"
    /\ \/ record.attempt = place[n]
       \/ lease[n] = "ended" /\ boot = NoBoot /\ budget.damage = 0
    /\ boot # [attempt |-> place[n], node |-> n]
    /\ \/ Holds(r) /\ Apply(r) /\ UNCHANGED <<late, budget, local, c>>
       \/ Delay(r)

\* A member believes only the bootstrap of its own round's attempt, by rank 0.
Believed(n) == boot = [attempt |-> place[n], node |-> rosters[place[n]].first]

Meet(n) ==
    /\ place[n] # 0 /\ met[n] = NoBoot /\ lease[n] # "dead" /\ Believed(n)
    /\ met' = [met EXCEPT ![n] = boot]
    /\ UNCHANGED <<etcd, late, budget, last, place, c>>

-----------------------------------------------------------------------------
(* The coordinator.                                                        *)

Table(n)      == IF MayLag THEN c[n].table ELSE key
Highest(t)    == CHOOSE i \in 0 .. MaxRound : (\A m \in Nodes : t[m] <= i) /\ (i = 0 \/ \E m \in Nodes : t[m] = i)
Max(i, j)     == IF i > j THEN i ELSE j
Coordinates(n) == c[n].fence # 0
Forming(n)    == Coordinates(n) /\ c[n].members = {} /\ c[n].pending = 0
Candidates(n) == Present(Table(n))
Enough(n)     == Cardinality(Candidates(n)) >= MinNodes

\* Whether these can be the members: all candidates, or as many as a round may have.
Fit(members, candidates) ==
    /\ Cardinality(members) \in MinNodes .. MaxNodes
    /\ members = candidates \/ Cardinality(members) = MaxNodes

Observe(n) ==
    /\ MayLag /\ Coordinates(n) /\ c[n].table # key
    /\ c' = [c EXCEPT ![n].table = key]
    /\ UNCHANGED <<etcd, late, budget, local>>

\* The elected node reads the run: it takes over, or it could not write, or the record is gone.
Mine(n) == coord.node = n /\ c[n].fence = coord.fence
Gone(n) == Mine(n) /\ record = NoRecord /\ c[n].known # NoRecord

Read(n) ==
    LET complete == record.phase = "complete"
        roster   == rosters[record.attempt].members
        damaged  == complete /\ roster = {}
    IN [Idle EXCEPT !.fence = coord.fence, !.known = record, !.round = Max(record.round, 1),
                    !.members = IF damaged THEN Present(key) ELSE IF complete THEN roster ELSE {},
                    !.error = damaged, !.table = IF MayLag THEN key ELSE @]

\* If there is a bootstrap, nodes that joined before the election may be in the first round.
NewRun == Highest(key) = 0 /\ (boot = NoBoot \/ coord.older \intersect Present(key) = {})

\* A write fails its comparison, and the coordinator reads again.
Outdated(n) == coord.node = n /\ (c[n].fence # coord.fence \/ c[n].known # record)

Load(n) ==
    /\ coord.node = n
    /\ IF Gone(n)
       THEN c[n].members = {} /\ c' = [c EXCEPT ![n].known = NoRecord, ![n].pending = 0]
       ELSE /\ record = NoRecord => NewRun
            /\ c' = [c EXCEPT ![n] = Read(n)]
    /\ c' # c
    /\ UNCHANGED <<etcd, late, budget, local>>

StepDown(n) ==
    /\ Coordinates(n) /\ ~Mine(n)
    /\ c' = [c EXCEPT ![n] = Idle]
    /\ UNCHANGED <<etcd, late, budget, local>>

AllLeft(members, r, t) == \A m \in members : t[m] = Absent \/ t[m] >= r

\* All members have left or are lost; or a node was in a later round, that this coordinator does not know.
Open(n) ==
    LET r == c[n].round
        t == Table(n) IN
    /\ Coordinates(n) /\ c[n].pending = 0
    /\ \/ c[n].members # {} /\ AllLeft(c[n].members, r, t)
       \/ c[n].members = {} /\ Highest(t) >= r
    /\ Max(r, Highest(t)) < MaxRound
    /\ c' = [c EXCEPT ![n].round = Max(r, Highest(t)) + 1, ![n].members = {}, ![n].error = FALSE]
    /\ UNCHANGED <<etcd, late, budget, local>>

RecordRequest(n, kind, new) ==
    [kind |-> kind, node |-> n, fence |-> c[n].fence, known |-> c[n].known, record |-> [new EXCEPT !.by = c[n].fence]]

Write(n, r, after) ==
    \/ Holds(r) /\ Apply(r) /\ c' = [c EXCEPT ![n] = after] /\ UNCHANGED <<late, budget, local>>
    \/ Delay(r)

\* Progress.  It need not be published: a round may complete before.
PublishRound(n) ==
    LET known == c[n].known
        enough == Enough(n)
        new == [NoRecord EXCEPT !.round = c[n].round, !.phase = IF enough THEN "last call" ELSE "forming",
                                !.previous = IF known.phase = "complete" THEN known.attempt ELSE known.previous]
        r == RecordRequest(n, "record", new)
    IN
    /\ Forming(n) /\ Highest(Table(n)) < c[n].round
    /\ known.round # new.round \/ known.phase # new.phase
    /\ Write(n, r, [c[n] EXCEPT !.known = r.record])

Used ==
    {record.attempt, record.previous, boot.attempt} \union {place[n] : n \in Nodes} \union {c[n].pending : n \in Nodes}
        \union {c[n].known.attempt : n \in Nodes} \union {c[n].known.previous : n \in Nodes}
        \union {r.attempt : r \in {r \in late : r.kind \in {"roster", "boot"}}}
        \union {r.record.attempt : r \in {r \in late : r.kind \in {"record", "complete"}}}
        \union {r.known.attempt : r \in {r \in late : r.kind \in {"record", "complete", "boot"}}}
        \union {a \in done : \E n \in Nodes : MayReturn(n, a)}

\* An attempt id is never used again.  What nothing refers to is as good as new.
Fresh(a) == a = CHOOSE b \in Attempts \ Used : \A d \in Attempts \ Used : b <= d

Choose(n, a, members, first) ==
    LET r == [kind |-> "roster", node |-> n, fence |-> c[n].fence, attempt |-> a,
              roster |-> [round |-> c[n].round, members |-> members, first |-> first]]
    IN
    /\ Forming(n) /\ Highest(Table(n)) < c[n].round /\ Fresh(a)
    /\ members \subseteq Candidates(n) /\ first \in members
    /\ Fit(members, Candidates(n))
    /\ Write(n, r, [c[n] EXCEPT !.pending = a])

Complete(n) ==
    LET a == c[n].pending
        new == [NoRecord EXCEPT !.round = c[n].round, !.phase = "complete", !.attempt = a]
        r == RecordRequest(n, "complete", new)
    IN
    /\ Coordinates(n) /\ a # 0
    /\ Write(n, r, [c[n] EXCEPT !.known = r.record, !.members = rosters[a].members, !.pending = 0])

\* The roster of the complete round is damaged: the record says so.
PublishError(n) ==
    LET r == RecordRequest(n, "record", [c[n].known EXCEPT !.error = TRUE]) IN
    /\ Coordinates(n) /\ c[n].error /\ ~c[n].known.error /\ c[n].known.phase = "complete"
    /\ Write(n, r, [c[n] EXCEPT !.known = r.record])

\* The record is gone, and the coordinator knows it: it writes roster and record again.
Restore(n) ==
    LET r == [RecordRequest(n, "record", c[n].known) EXCEPT !.known = NoRecord] IN
    /\ Gone(n) /\ c[n].members # {} /\ ~closed
    /\ record' = r.record
    /\ rosters' = [rosters EXCEPT ![c[n].known.attempt].members = c[n].members]
    /\ c' = [c EXCEPT ![n].known = r.record]
    /\ UNCHANGED <<lease, key, coord, boot, closed, done, top, late, budget, local>>

\* A new coordinator finds no record, although nodes were in rounds: all nodes leave the round that they are in.
Recount(n) ==
    \E a \in Attempts :
        LET new == [NoRecord EXCEPT !.round = Highest(key) + 1, !.phase = "complete", !.attempt = a, !.error = TRUE,
                                    !.by = coord.fence] IN
        /\ coord.node = n /\ ~Gone(n) /\ record = NoRecord /\ ~closed /\ Fresh(a)
        /\ ~NewRun /\ Highest(key) < MaxRound
        /\ record' = new
        /\ rosters' = [rosters EXCEPT ![a] = [NoRoster EXCEPT !.round = new.round]]
        /\ c' = [c EXCEPT ![n] = [Read(n) EXCEPT !.known = new, !.round = new.round, !.members = Present(key),
                                                 !.error = TRUE]]
        /\ UNCHANGED <<lease, key, coord, boot, closed, done, top, late, budget, local>>

-----------------------------------------------------------------------------
(* Damage: the round record is deleted; or all records of the run are,     *)
(* because the run lease has ended; or a roster cannot be read any more.   *)

Damage ==
    /\ budget.damage < MaxDamage /\ record # NoRecord
    /\ budget' = [budget EXCEPT !.damage = @ + 1]
    /\ \/ /\ record' = NoRecord /\ top' = 0
          /\ UNCHANGED <<rosters, boot>>
       \/ /\ MaxLost = 0  \* a coordinator lives that writes all of it again
          /\ record' = NoRecord /\ top' = 0 /\ boot' = NoBoot
          /\ rosters' = [a \in Attempts |-> [rosters[a] EXCEPT !.members = {}]]
       \/ /\ record.phase = "complete" /\ rosters[record.attempt].members # {}
          /\ rosters' = [rosters EXCEPT ![record.attempt].members = {}]
          /\ UNCHANGED <<record, boot, top>>
    /\ UNCHANGED <<lease, key, coord, closed, done, late, local, c>>

-----------------------------------------------------------------------------
Next ==
    \/ ApplyLate
    \/ Damage
    \/ \E n \in Nodes :
        \/ Join(n) \/ Campaign(n) \/ Return(n) \/ Skip(n) \/ Leave(n) \/ Lose(n) \/ Close(n)
        \/ PublishBoot(n) \/ Meet(n)
        \/ Observe(n) \/ Load(n) \/ StepDown(n) \/ Open(n) \/ PublishRound(n) \/ Complete(n)
        \/ PublishError(n) \/ Restore(n) \/ Recount(n)
        \/ \E a \in Attempts, members \in SUBSET Nodes, first \in Nodes : Choose(n, a, members, first)

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* What must hold: the invariants of docs/design.md.                       *)

\* A node is in a round when its join returns, until it leaves, or its lease ends at etcd. Its key does not matter.
Inside(n) == place[n] # 0 /\ met[n] # NoBoot /\ lease[n] = "live"

Agreement ==
    /\ \A n \in Nodes : place[n] # 0 => n \in rosters[place[n]].members \/ budget.damage > 0
    /\ \A m, n \in Nodes : place[m] # 0 /\ place[n] # 0 /\ last[m] = last[n] =>
            \/ place[m] = place[n]
            \/ budget.damage > 0 /\ ~(Inside(m) /\ Inside(n))

\* When a round is complete, no node is in another one.
Exclusivity ==
    record.phase = "complete" /\ ~record.error => \A n \in Nodes : Inside(n) => place[n] = record.attempt

Bounds ==
    record.phase = "complete" /\ ~record.error =>
        \/ Cardinality(rosters[record.attempt].members) \in MinNodes .. MaxNodes
        \/ budget.damage > 0 /\ rosters[record.attempt].members = {}

OneMeetingPoint ==
    \A n \in Nodes : met[n] # NoBoot => met[n] = [attempt |-> place[n], node |-> rosters[place[n]].first]

\* No round completes twice. Rounds only grow, and a complete round is never overwritten.
Monotony ==
    [][/\ top' \in {0, top} => done' \subseteq done
       /\ top' # 0 => top' >= top
       /\ record' # record /\ NoRecord \notin {record, record'} =>
            /\ record'.round >= record.round
            /\ record.phase = "complete" => record'.round > record.round \/ record' = [record EXCEPT !.error = TRUE, !.by = record'.by]
      ]_vars

Fencing == [][record' \notin {record, NoRecord} => record'.by = coord.fence]_vars

ClosedIsFinal == [][closed => closed' /\ record' \in {record, NoRecord}]_vars

\* The bootstrap is not replaced during the round.
OneBootstrap ==
    [][boot' # boot /\ boot # NoBoot /\ boot.attempt = record.attempt => record' # record]_vars

-----------------------------------------------------------------------------
(* Liveness: once no more leases end and no more requests are late, a      *)
(* round is complete and its members are in it, unless too few nodes are   *)
(* left.                                                                   *)

Live == {n \in Nodes : lease[n] = "live"}

\* num_nodes_waiting() of a member is not 0: the round is another one, or broken; or a node waits that fits in.
Waiting(n) ==
    LET members == rosters[place[n]].members IN
    \/ record.error \/ record.attempt # place[n]
    \/ \E m \in members : key[m] = Absent \/ key[m] >= last[n]
    \/ Cardinality(members) < MaxNodes /\ \E m \in Nodes \ members : key[m] # Absent

Chosen(n) == \E a \in Attempts, members \in SUBSET Nodes, first \in Nodes : Choose(n, a, members, first)

Fairness ==
    \A n \in Nodes :
        /\ WF_vars(Join(n)) /\ WF_vars(Campaign(n)) /\ WF_vars(Return(n)) /\ WF_vars(Skip(n))
        /\ WF_vars(Leave(n) /\ Waiting(n)) /\ WF_vars(PublishBoot(n)) /\ WF_vars(Meet(n))
        /\ WF_vars(Observe(n)) /\ WF_vars(StepDown(n)) /\ WF_vars(Load(n) /\ Outdated(n))
        /\ WF_vars(Open(n)) /\ WF_vars(PublishRound(n)) /\ SF_vars(Chosen(n)) /\ SF_vars(Complete(n))
        /\ WF_vars(PublishError(n)) /\ WF_vars(Restore(n)) /\ WF_vars(Recount(n))

FairSpec == Spec /\ Fairness

Settled ==
    \/ closed
    \/ Cardinality(Live) < MinNodes
    \/ /\ record.phase = "complete" /\ ~record.error
       /\ \A n \in rosters[record.attempt].members \intersect Live :
              /\ place[n] = record.attempt
              /\ met[n] # NoBoot \/ lease[rosters[record.attempt].first] # "live"

Settles == <>[]Settled

-----------------------------------------------------------------------------
(* For TLC: what makes no difference is not a part of the state.           *)

MayHold(r) ==
    \/ Holds(r)
    \/ r.kind = "boot" /\ r.known = NoBoot
    \/ MaxDamage > 0 /\ r.kind \in {"record", "complete"} /\ r.known = NoRecord /\ Fenced(r)

View ==
    <<lease, key, coord, record, [a \in Attempts |-> IF a \in Used THEN rosters[a] ELSE NoRoster], boot, closed,
      {r \in late : MayHold(r)}, budget, last, place, met, c, {a \in done : \E n \in Nodes : MayReturn(n, a)}, top>>

Symmetry == Permutations(Nodes)
=============================================================================
