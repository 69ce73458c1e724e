{{ config(materialized='sweep', contract={'enforced': false}) }}

{{ sweep([
    ref('note'),
    ref('part'),
    ref('time_span'),
    ref('key_span'),
    ref('piece_roll'),
    ref('piece'),
    ref('score'),
    ref('edition'),
    ref('instrument'),
    ref('work'),
    ref('composer'),
]) }}
