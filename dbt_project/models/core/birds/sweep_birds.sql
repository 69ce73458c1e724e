{{ config(materialized='sweep', contract={'enforced': false}) }}

{{ sweep([
    ref('clip'),
    ref('detection'),
    ref('recorder'),
    ref('recording_sound_type'),
    ref('sound_type'),
    ref('recording_species'),
    ref('recording'),
    ref('place'),
    ref('recordist'),
    ref('species'),
    ref('genus'),
    ref('family'),
    ref('bird_order'),
]) }}
