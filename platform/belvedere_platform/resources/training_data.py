"""What a run is shown: the data set, how its pictures are varied, and which of its texts are drawn."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from belvedere_platform.resources.base import CelRule, Part

Share = Annotated[float, Field(ge=0, le=1)]


class Augmentation(Part):
    """How far the views of a picture and its text go; each is drawn anew every time that a picture is seen."""

    rotation: Annotated[float, Field(ge=0, le=3.15, description="at most, either way, in radians")] = 0.1
    smallest: Annotated[float, Field(gt=0, le=4, description="the least size that things get, of their own")] = 0.85
    largest: Annotated[float, Field(gt=0, le=4, description="the greatest size that things get, of their own")] = 1.15
    shift: Annotated[float, Field(ge=0, le=1, description="at most, either way, as a share of half of the edge")] = 0.1
    brightness: Annotated[float, Field(ge=0, le=1, description="share that is added or taken at most")] = 0.2
    color_shift: Annotated[float, Field(ge=0, le=1, description="the same for each colour alone")] = 0.15
    gray_share: Annotated[
        Share, Field(description="share of views without colour: 0 where texts or answers name colours")
    ] = 0.15
    word_dropout: Annotated[Share, Field(description="share of a text's tokens that are left out")] = 0.0
    cel: ClassVar = (
        CelRule(
            rule="self.smallest <= self.largest",
            message="data.augmentation.smallest must not be greater than data.augmentation.largest",
        ),
    )


class TextChoice(Part):
    """How often which text goes with a picture. Languages that a record lacks leave their share to the others."""

    english_share: Annotated[Share, Field(description="share of English, where there is another language")] = 0.65
    caption_alone: Annotated[Share, Field(description="share of captions that stand alone, without synonyms")] = 0.65
    caption_dropped: Annotated[
        Share, Field(description="share of synonyms alone; the rest is the caption with synonyms")
    ] = 0.12
    most_synonyms: Annotated[int, Field(ge=1, le=16, description="synonyms in one text")] = 3
    question_share: Annotated[
        Share, Field(description="share of texts that are questions with their answers, where a record has any")
    ] = 0.75
    most_questions: Annotated[
        int, Field(ge=1, le=16, description="answered questions in one text; architecture.maxLength has to hold them")
    ] = 2
    balance_answers: Annotated[
        bool,
        Field(
            description="draw each answer to a question as often as its others, so that none is right without a look at the picture. With optimization.questionsPerPicture: of each picture two questions that have their usual answer to each that has not"
        ),
    ] = False
    cel: ClassVar = (
        CelRule(
            rule="self.captionAlone + self.captionDropped <= 1.0",
            message="data.texts.captionAlone and captionDropped must not be more than 1 together",
        ),
    )


class TrainingData(Part):
    """The data set, by artifact name (the tag `datasets/NAME`) or digest, and how it is shown."""

    dataset: Annotated[str, Field(min_length=1, max_length=128)]
    augmentation: Augmentation = Augmentation()
    texts: TextChoice = TextChoice()
