{{ config(materialized='sweep', contract={'enforced': false}) }}

{{ sweep([
    ref('link'),
    ref('sentence'),
    ref('contributor'),
    ref('corpus'),
    ref('language'),
]) }}
