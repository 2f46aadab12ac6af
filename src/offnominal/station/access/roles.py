"""Roles of people and scopes of tokens, and what each may do."""

from typing import Literal

__all__ = ["ROLES", "SCOPES", "Role", "Scope", "reaches"]

Role = Literal["operator", "engineer", "admin"]
Scope = Literal["inspect", "read", "label", "manage"]

ROLES: tuple[Role, ...] = ("operator", "engineer", "admin")
"""Each may do what those before it may."""
SCOPES: dict[Scope, Role] = {
    "inspect": "operator",
    "read": "operator",
    "label": "operator",
    "manage": "engineer",
}
"""The role that a scope stands for: a token cannot do what its owner may not."""


def reaches(role: str, needed: Role) -> bool:
    """Whether a role is the one that is needed, or above it; an unknown one is below all."""
    return role in ROLES and ROLES.index(role) >= ROLES.index(needed)
