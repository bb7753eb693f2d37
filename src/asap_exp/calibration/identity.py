"""The identity of a compiled map: one whose layers can be built from what it says."""

import torch
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from asap_exp.attention import AsapAttention, attention_class, attention_options, build_attention
from asap_exp.core.records.identity import AttentionConfig, Identity
from asap_exp.core.typed import STRICT


@dataclass(config=STRICT, kw_only=True)
class MapIdentity(Identity):
    """An identity whose attentions exist and take the options that it gives them."""

    @model_validator(mode="after")
    def _attentions_can_be_built(self) -> "MapIdentity":
        for path, options in (self.attentions or {}).items():
            check_attention(f"attentions.{path}", options)
        return self


def check_attention(key: str, options: AttentionConfig) -> None:
    """ValueError unless it is an attention that there is, with options that it takes."""
    try:
        cls = attention_class(str(options["name"]))
        given = {name: value for name, value in options.items() if name != "name"}
        unknown = given.keys() - set(attention_options(cls.name))
        if unknown:
            raise ValueError(f"{cls.name} has no option {', '.join(sorted(unknown))}")
        if cls is AsapAttention:
            AsapAttention(torch.zeros(1, 1, 1), torch.zeros(1, 1), **given)  # type: ignore[arg-type]
        else:
            build_attention(options)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{key} is no attention: {error}") from error
