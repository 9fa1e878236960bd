"""Fine-tuning on conversations: from files in the formats people have to packs of tokens that know what is learnt.

    data sets (`sources`) -> records (`records`) -> samples (`formats`) -> tokens and mask (`render`, many by `work`)
        -> store and report (`prepare`, `store`, `report`) -> sequences of the trainer (`packing`, `sequences`)

Every record ends up in the store or in the report, with its place and the reason.
"""
