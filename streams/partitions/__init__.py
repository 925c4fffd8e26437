"""Which partitions this worker owns, the state it keeps for each in a changelog, and the offsets stored with it.

Foreign writes and zombies
==========================

A zombie is a worker that has lost a partition and does not know it yet: the process was paused (a suspended machine, a
stalled host) or cut off for longer than its session, the group gave the partition to another worker, and the zombie
goes on where it stood until it hears of the rebalance. Two workers with one ``worker.instance_id`` are the same case.
Nothing fences its producer, so its records arrive in the changelog between those of the owner. To the owner they are
foreign writes, as the owner's are to the zombie.

Detection
    A worker's store (RocksDB) has a checkpoint: the offset of the last changelog record that was applied to it. Every
    write waits for the offsets of its own records. If they are not exactly those that follow the checkpoint, somebody
    else has written: ``ChangelogTable.write``.

On detection
    Everything from the checkpoint to the last own record is read from the changelog and applied in the order of the
    offsets, so that a store is always equal to its changelog up to the checkpoint, a zombie's too. ``write`` returns
    false, ``foldtune_foreign_writes`` counts it, and what was derived from the partition is dropped
    (``TrainingSets.write``): the index of segments, the erasures, and the note that the partition is purged. A worker
    that has heard by then that it lost the partition gets ``PartitionLostError``, and leaves its store as it was.

What each part relies on
    - Offsets (``consumer``): a zombie may store an older offset. The owner goes on from the one in its memory; the next
      owner may start from the older one, and records are redelivered.
    - Segments: a key names the whole content, down to a digest. A foreign or repeated write adds an overlapping copy
      and overwrites nothing.
    - Fold: one record counts for each place in the input, whatever the number, order and cut of the copies.
    - Compaction: a step deletes only segments that it has read, after it has durably written what is retained of them.
      Two workers that do the same at once come to the same training sets.
    - Erasure: a zombie that merges segments can bring erased text back behind the mark that says "purged". So whoever
      takes a partition over purges it once, whatever the mark says, and so does an owner after a foreign write.
    - Coordinator: a decision is not idempotent, two of them could end a request twice. So before each one that others
      hear of, it writes to the partition: that write brings in what others have decided meanwhile.
    - Other topics: a zombie may publish an event again. Readers take a duplicate as such: commands and parts carry the
      request, the launchers' ledger starts a job once, a status is the same again.
    - Standbys: Faust may hand over changelog records of a standby after the partition became active. They are older
      than the store, and are left out (``ChangelogTable``).

What is left
    - A pause between the coordinator's first write and that of its decision, milliseconds, if it outlasts the session:
      two workers can then decide on one request, and the later decision is the state.
    - A foreign write behind the owner's last own write is noticed with its next one only. It delays: the owner writes
      with every block, before every decision, and daily where something was erased.

``tests/unit/streams/training_sets/test_store.py`` runs random histories with zombies, ``tests/chaos`` pauses real
workers.
"""
