# %% kind="given" id="setup"
__SETUP__

# %% [markdown]
# Write your student id between the quotes, as your teacher knows it. Some numbers below depend on it, so
# yours differ from your neighbour's.

# %% kind="answer" id="student"
STUDENT = (
    ### BEGIN SOLUTION
    "solution"
    ### END SOLUTION
)

# %% kind="given" id="mine"
import hashlib


def mine(question, choices):
    """The choice that is yours: it depends on the question, on you and on the course."""
    if not isinstance(STUDENT, str) or not STUDENT.strip():
        raise RuntimeError('Write your student id into the cell above: STUDENT = "...".')
    key = f"__COURSE__/{STUDENT.strip().lower()}/{question}"
    return choices[int(hashlib.sha256(key.encode()).hexdigest(), 16) % len(choices)]
